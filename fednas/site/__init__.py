"""A site: its records, its ledger, and what they do when a server asks: the code that an audit attacks."""

from fednas.site.site import Site, open_site

__all__ = ["Site", "open_site"]
