"""A hub in Django. Run: `uvicorn --app-dir examples/hosts django_app:application`."""

import json

from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from rtkit import Grant, History, Hub, anonymous

hub = Hub(authenticate=anonymous)
lobby = hub.rooms("lobby", publishes=object, grant=Grant("publish"), history=History(100, ttl=3600))


def announce(request: HttpRequest) -> HttpResponse:  # views.py; an `async def` view awaits hub.publish
    async_to_sync(hub.publish)("lobby", json.loads(request.body))
    return HttpResponse("published")


urlpatterns = [path("announce", announce)]  # urls.py
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])  # settings.py

application = hub.wrap(get_asgi_application(), "/rt")  # asgi.py
