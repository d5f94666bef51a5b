"""The ledger of claims as a page: filtered by verdict and table, what was measured as pictures of intervals."""

from .links import renew_pages
from .page import claims_page

__all__ = ["claims_page", "renew_pages"]
