"""Federated, differentially private neural architecture search with a ledger that proves every epsilon."""
