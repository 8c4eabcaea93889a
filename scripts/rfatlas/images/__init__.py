"""Images: from what people have to packed pixels.

Sources of photographs, one class each, and their listings; decoding and packing; the scenes that
the demo looks at.
"""
