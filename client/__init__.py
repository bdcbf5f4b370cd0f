"""The Flower client of a site: its records, its ledger, its device."""
