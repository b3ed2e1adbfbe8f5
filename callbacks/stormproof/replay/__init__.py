"""Compares training runs step by step: the recorder writes ledgers, and ``stormproof certify`` judges them."""
