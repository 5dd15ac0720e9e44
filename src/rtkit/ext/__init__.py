"""What a hub can be extended with; each module stands alone, and is imported by name.

:mod:`rtkit.ext.http_api` lets other programs publish, and more, over HTTP. :mod:`rtkit.ext.jwt` takes signed tokens.
:mod:`rtkit.ext.prometheus` and :mod:`rtkit.ext.opentelemetry` tell what hubs count and measure.
"""
