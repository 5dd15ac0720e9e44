"""What a hub can be extended with; each module stands alone, and is imported by name.

:mod:`rtkit.ext.http_api` lets other programs publish, and more, over HTTP.
"""
