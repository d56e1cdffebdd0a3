"""`edgeloop shortlist`: choose the most valuable of a very large number of captures, on one or many machines."""
