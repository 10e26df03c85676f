"""Empty rooms as boxes, seen by a level, turned or tilted camera: their inverse depth in closed form."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BoxRoom:
    """Metres and degrees; the camera stands ``near`` before the wall behind it, its height above the floor."""

    width: float = 4.5
    depth: float = 5.0
    height: float = 2.6
    camera: float = 1.4
    near: float = 0.4
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    focal: float = 0.7

    def inverse_depth(self, width_px: int, height_px: int) -> tuple[np.ndarray, np.ndarray]:
        """1/Z [h,w], and bool [h,w]: the floor."""
        focal_px = self.focal * max(width_px, height_px)
        x = (np.arange(width_px) + 0.5 - width_px / 2) / focal_px
        y = (np.arange(height_px) + 0.5 - height_px / 2) / focal_px
        rays = np.stack(np.broadcast_arrays(x[None, :], -y[:, None], 1.0), axis=-1)
        yaw, pitch, roll = np.radians((self.yaw, self.pitch, self.roll))
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        tilt = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        lean = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
        world = rays @ (turn @ tilt @ lean).T
        planes = np.array([[0, -1, 0], [0, 1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]], np.float64)
        half = self.width / 2
        away = np.array([self.camera, self.height - self.camera, half, half, self.depth - self.near, self.near])
        told = world @ planes.T / away
        # From inside a convex room the nearest plane ahead is the one with the largest inverse depth.
        return told.max(axis=-1).astype(np.float32), told.argmax(axis=-1) == 0
