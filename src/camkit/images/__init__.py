"""Photographs: finding, decoding, preparing, and the processes that read them."""
