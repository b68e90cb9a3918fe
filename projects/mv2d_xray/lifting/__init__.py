"""From queries to boxes: decoder, position encoding, codes of boxes."""
