"""Puts one process together from the parts below; nobody but the command line imports it."""
