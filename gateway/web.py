"""Serves the web page at /, as built by `npm run build` in web/, with headers that let it load only its own files."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
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
# Swagger UI starts with a script in its page and draws with styles in its elements
DOCS_POLICY = "; ".join(
    [*CONTENT_SECURITY_POLICY, *(f"{kind}-src 'self' 'unsafe-inline'" for kind in ("script", "style"))]
)
SWAGGER = f"{ASSETS}/swagger-{version('fastapi-swagger')}"
ALWAYS_ASK = {"Cache-Control": "no-cache"}
FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}  # names of assets hold a hash or a version


def add_page(app: FastAPI, folder: Path) -> None:
    """Serves the page that was built into the folder; if there is none, / says how to build it."""
    index = folder / "index.html"

    @app.get("/", include_in_schema=False)
    @app.head("/", include_in_schema=False)
    def page() -> Response:
        if index.is_file():
            return FileResponse(index, headers=SECURITY | ALWAYS_ASK)
        remedy = "not built: make web/dist/index.html does it, with npm; REFERENT_WEB says where it is"
        return JSONResponse({"name": "referent", "api": "/docs", "page": remedy}, headers=SECURITY)

    app.mount(ASSETS, Assets(directory=folder / ASSETS.strip("/"), check_dir=False))


def add_docs(app: FastAPI) -> None:
    """Serves the API's description at /docs, without files from elsewhere; its URLs are relative, for any prefix."""

    @app.get("/docs", include_in_schema=False)
    @app.head("/docs", include_in_schema=False)
    def docs() -> Response:
        swagger = SWAGGER.strip("/")
        page = get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"{app.title} API",
            swagger_js_url=f"{swagger}/swagger-ui-bundle.js",
            swagger_css_url=f"{swagger}/swagger-ui.css",
            swagger_favicon_url=f"{swagger}/favicon-32x32.png",
        )
        page.headers.update(SECURITY | {"Content-Security-Policy": DOCS_POLICY} | ALWAYS_ASK)
        return page

    app.mount(SWAGGER, Assets(packages=[("fastapi_swagger", "resources")]))


class Assets(StaticFiles):
    """The page's files; 404 if the page isn't built."""

    async def check_config(self) -> None:
        """Does nothing, since the API must work without the page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(SECURITY | FOR_EVER)
        return response
