"""The kill switch where it refuses: jobs end at once, with a code that says why."""

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.errors import InferenceDisabled
from orchestrator.mock import mock_checkpoint
from orchestrator.pipeline import PipelineStep, Turns
from orchestrator.plan import Plan


class DisabledPainter:
    """Plans like any other, so that broken jobs hear what is wrong with them, and then refuses."""

    def __init__(self) -> None:
        self.checkpoint: CheckpointInfo = mock_checkpoint()

    def run(self, plan: Plan, resume: PipelineStep | None = None) -> Turns:
        """Raises :class:`InferenceDisabled`."""
        raise InferenceDisabled("inference is switched off (INFERENCE_ENABLED=false); send the job again later")
