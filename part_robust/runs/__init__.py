"""The runs that tables and suites are made of, and the tables themselves."""
