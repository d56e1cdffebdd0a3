"""The most worthwhile of very many captures, on one machine or on many: `edgeloop shortlist`."""
