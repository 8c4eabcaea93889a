"""Images: from listed photographs to packed pixels.

Decoding as torchvision does, packing, and the scenes that the demo looks at.
"""
