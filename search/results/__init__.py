"""What came out of a sweep: views of the ledger's records, for humans and for programs."""
