"""Images: from what people have to packed pixels.

Lists of images in folders, archives and tables; packing; the scenes that the demo is drawn from.
"""
