"""The web page at /: what `npm run build` left of web/, with headers that let it load nothing but its own files."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

ASSETS = "/assets"
CONTENT_SECURITY_POLICY = [
    "default-src 'self'",
    "img-src 'self' blob: data:",
    "object-src 'none'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
]
SECURITY = {
    "Content-Security-Policy": "; ".join(CONTENT_SECURITY_POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
ALWAYS_ASK = {"Cache-Control": "no-cache"}
FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}  # the names of assets hold their hashes


def add_page(app: FastAPI, folder: Path) -> None:
    """Serves the page that was built into the folder; where there is none, / says how to build it."""
    index = folder / "index.html"

    @app.get("/", include_in_schema=False)
    @app.head("/", include_in_schema=False)
    def page() -> Response:
        if index.is_file():
            return FileResponse(index, headers=SECURITY | ALWAYS_ASK)
        remedy = "not built: make web/dist/index.html does it, with npm; REFERENT_WEB says where it is"
        return JSONResponse({"name": "referent", "api": "/docs", "page": remedy}, headers=SECURITY)

    app.mount(ASSETS, Assets(directory=folder / ASSETS.strip("/"), check_dir=False))


class Assets(StaticFiles):
    """The page's files; 404 where it isn't built."""

    async def check_config(self) -> None:
        """Without the page the API goes on."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(SECURITY | FOR_EVER)
        return response
