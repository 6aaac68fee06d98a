"""The exception tree: every error that plait raises on purpose.

    PlaitError                    what the command line prints as one line, exit code 2
    ├── ConfigurationError        a bundle file, option or argument that cannot be used
    ├── ModelError                a model that cannot be had
    │   ├── UnsupportedModelError     an architecture, quantization or tokenizer plait does not read
    │   ├── CheckpointError           files that are missing, damaged or do not match their configuration
    │   └── PullError                 a download that failed or has the wrong digest
    ├── TargetError               a target file that is unknown or malformed
    ├── DoesNotFitError           a plan that no tier can hold: demand, limit, shortfall, levers
    ├── VerificationError         a plan that breaks its own definition: a defect of plait, not of the input
    ├── BundleError               a bundle that will not be opened
    │   ├── BundleVersionError        written in a newer format
    │   └── BundleIntegrityError      truncated, tampered with, or pointing outside itself
    ├── ExecutionError            a step or transfer that failed on the device
    └── RequestError              what a client asked for and does not get; carries the HTTP status
        ├── InvalidRequestError       400: a parameter is wrong or unsupported
        ├── ContextLengthError        400: prompt and answer do not fit the context
        ├── ModelNotFoundError        404
        ├── RequestTimeoutError       408
        ├── ModelStateError           409: where the model is, it has to stay
        ├── QueueFullError            429
        ├── ModelUnhealthyError       503: a model that does not answer as it should
        └── ShuttingDownError         503

A message says what, the values, the limit and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "BundleError",
    "BundleIntegrityError",
    "BundleVersionError",
    "CheckpointError",
    "ConfigurationError",
    "ContextLengthError",
    "DoesNotFitError",
    "ExecutionError",
    "InvalidRequestError",
    "ModelError",
    "ModelNotFoundError",
    "ModelStateError",
    "ModelUnhealthyError",
    "PlaitError",
    "PullError",
    "QueueFullError",
    "RequestError",
    "RequestTimeoutError",
    "ShuttingDownError",
    "TargetError",
    "UnsupportedModelError",
    "VerificationError",
]


class PlaitError(Exception):
    """Base of all deliberate errors; its text is one line, fit to be shown to a user."""


class ConfigurationError(PlaitError):
    """A bundle file, command-line option or argument cannot be used."""


class ModelError(PlaitError):
    """A model cannot be had."""


class UnsupportedModelError(ModelError):
    """The architecture, quantization or tokenizer is none that plait reads; the message lists those it does."""


class CheckpointError(ModelError):
    """Checkpoint files are missing, damaged, or disagree with their configuration."""


class PullError(ModelError):
    """A download failed or its digest is wrong."""


class TargetError(PlaitError):
    """A target is unknown or its file is malformed."""


class VerificationError(PlaitError):
    """A plan breaks its own definition; found by a verifier, to be mended in the planner."""


class BundleError(PlaitError):
    """A bundle will not be opened."""


class BundleVersionError(BundleError):
    """The bundle was written in a format newer than this plait reads."""


class BundleIntegrityError(BundleError):
    """The bundle is truncated, tampered with, or points outside its own directory."""


class ExecutionError(PlaitError):
    """A step or a transfer failed on the device."""


@dataclass(eq=False)
class DoesNotFitError(PlaitError):
    """A plan that no tier can hold, as a structured report."""

    subject: str  # what is being placed, e.g. "model 'chat'"
    tier: str  # "sram" | "hbm" | "ddr"
    demand_bytes: int
    limit_bytes: int
    largest_terms: tuple[tuple[str, int], ...] = ()  # (name, bytes), largest first
    levers: tuple[str, ...] = field(default=())  # what would make it fit

    @property
    def shortfall_bytes(self) -> int:
        """Bytes by which the demand exceeds the limit."""
        return self.demand_bytes - self.limit_bytes

    def __str__(self) -> str:
        terms = ", ".join(f"{name} {_mebibytes(size)}" for name, size in self.largest_terms)
        message = (
            f"{self.subject} needs {_mebibytes(self.demand_bytes)} of {self.tier}, "
            f"the budget is {_mebibytes(self.limit_bytes)} (short {_mebibytes(self.shortfall_bytes)})"
        )
        if terms:
            message += f"; largest: {terms}"
        if self.levers:
            message += f"; {' or '.join(self.levers)}"
        return message


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 // 2 else f"{num_bytes / 2**10:.1f} KiB"


class RequestError(PlaitError):
    """What a client asked for and does not get.

    Attributes:
        status: HTTP status.
        param: Name of the offending parameter, if one is to blame.
        code: Machine-readable code, as OpenAI names them.
        type: OpenAI's error class.
    """

    status = 400
    type = "invalid_request_error"
    default_code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code if code is not None else self.default_code


class InvalidRequestError(RequestError):
    """400: a parameter is wrong or unsupported; `param` names it."""

    default_code = "invalid_value"


class ContextLengthError(RequestError):
    """400: the prompt and the answer do not fit the model's context."""

    default_code = "context_length_exceeded"


class ModelNotFoundError(RequestError):
    """404: no model of that name or alias in the bundle."""

    status = 404
    default_code = "model_not_found"


class RequestTimeoutError(RequestError):
    """408: the request waited longer than the runtime lets requests wait."""

    status = 408
    type = "timeout_error"
    default_code = "request_timeout"


class ModelStateError(RequestError):
    """409: a model cannot be brought where it was asked to be."""

    status = 409
    default_code = "model_state"


class QueueFullError(RequestError):
    """429: the queue is full; the client may retry after a while."""

    status = 429
    type = "rate_limit_error"
    default_code = "queue_full"


class ModelUnhealthyError(RequestError):
    """503: a model has failed its check and answers nobody until it is loaded anew."""

    status = 503
    type = "server_error"
    default_code = "model_unhealthy"


class ShuttingDownError(RequestError):
    """503: the runtime is draining and takes no new requests."""

    status = 503
    type = "server_error"
    default_code = "shutting_down"
