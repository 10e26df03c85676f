"""As much of TensorRT's Python package as a build touches: it cannot be installed without a GPU."""

from types import ModuleType, SimpleNamespace
from typing import Any


class TimingCache:
    def __init__(self, known: bytes) -> None:
        self.known = known

    def serialize(self) -> bytes:
        return self.known + b" and this build's"


class Config:
    def __init__(self) -> None:
        self.profiles: list[Any] = []
        self.cache: TimingCache | None = None
        self.flags: list[Any] = []

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, known: bytes) -> TimingCache:
        return TimingCache(known)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "another version's or GPU's timings are not this one's"
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag)


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = (low, best, high)


class Severity:
    ERROR, INTERNAL_ERROR, INFO = "ERROR", "INTERNAL_ERROR", "INFO"


class Logger:
    pass


Logger.Severity = Severity  # type: ignore[attr-defined]


class Engine(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class Library(ModuleType):
    """As much of the package as a build touches."""

    def __init__(self, version: str, fails: bool = False) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.fails = fails
        self.config = Config()
        self.network_flags: int | None = None
        self.ILogger = Logger
        self.IProgressMonitor = type("IProgressMonitor", (), {})
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=0 if version.startswith("11") else 1)

    def Builder(self, log: Any) -> Any:  # noqa: N802 - the library's name
        def create_network(flags: int) -> str:
            self.network_flags = flags
            return "network"

        def build(network: str, config: Config) -> Engine | None:
            for size_bytes in (100, 200):
                log.log(Severity.INFO, f"Total Activation Memory: {size_bytes} bytes")
            log.log(Severity.INFO, "Total Weights Memory: 50 bytes")
            if self.fails:
                log.log(Severity.ERROR, "no kernel fits")
                return None
            return Engine(b"engine")

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: self.config,
            create_optimization_profile=Profile,
            build_serialized_network=build,
        )

    def OnnxParser(self, network: str, log: Any) -> Any:  # noqa: N802 - the library's name
        return SimpleNamespace(parse_from_file=lambda path: True, num_errors=0)
