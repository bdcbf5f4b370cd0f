"""Errors a user can act on: each says what was wrong, the bound, and what to do."""


class FednasError(Exception):
    """Base of every error that a command shows as one line; its text holds public facts only."""


class ConfigurationError(FednasError):
    """A setting is unknown, out of its bounds, or contradicts another."""


class DatasetError(FednasError):
    """A dataset is missing or does not match the study's public schema."""


class RunDirectoryError(FednasError):
    """A run directory is missing, corrupt, or belongs to another study."""


class InfeasibleDeviceError(FednasError):
    """No architecture of the space fits a device."""


class MissingExtraError(FednasError):
    """An optional dependency is not installed."""


class AuditError(FednasError):
    """An audit could not be carried out: that is no finding."""


class ExchangeError(FednasError):
    """Too few sites answered, or what they sent is malformed."""


class PrivacyError(FednasError):
    """Base of every refusal by the privacy layer: nothing was computed, nothing was sent."""


class BudgetExceededError(PrivacyError):
    """A charge does not fit under a site's cap or outside its plan's allowance."""


class UnsupportedEventError(PrivacyError):
    """An event that no accountant here can bound."""


class StreamViolationError(PrivacyError):
    """A mechanism tried to read a record outside the streams it is charged to."""


class ReplayMismatchError(PrivacyError):
    """An operation was repeated under its old name with another content."""


class UnknownServerError(PrivacyError):
    """A request is not signed by the server that a site knows."""


class SitePausedError(PrivacyError):
    """A site's owner allows no answer for now."""


class ConsentWithdrawnError(PrivacyError):
    """A site's owner allows no answer any more, or none to this study."""


class LedgerError(PrivacyError):
    """A ledger file is corrupt, foreign, or cannot be written."""


class LedgerRolledBackError(LedgerError):
    """A ledger is not the one that was seen before: an older copy, or one begun anew."""
