"""Toxiproxy's HTTP API over a collection of proxies: its routes, codes and bodies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from aiohttp import web

from chaos.toxiproxy.embedded import api_error, gojson, toxics
from chaos.toxiproxy.embedded.api_error import ApiError
from chaos.toxiproxy.embedded.collection import Collection, ProxySpec
from chaos.toxiproxy.embedded.gojson import GoJsonError, Scalar
from chaos.toxiproxy.embedded.proxy import Proxy
from chaos.toxiproxy.embedded.toxics import Direction, InvalidAttributeError, Toxic
from chaos.toxiproxy.identity import EMBEDDED_SERVER, VERSION

BODY_BYTES_MAX: Final = 2**20

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PROXY_FIELDS: Final = {"name": "string", "listen": "string", "upstream": "string", "enabled": "bool"}
_TOXIC_FIELDS: Final = {"name": "string", "type": "string", "stream": "string", "toxicity": "float32"}
# How Go prints the anonymous structs it decodes into.
_GO_POPULATE: Final = 'struct { toxiproxy.Proxy; Enabled *bool "json:\\"enabled\\"" }'
_GO_UPDATE: Final = (
    'struct { Attributes interface {} "json:\\"attributes\\""; Toxicity float32 "json:\\"toxicity\\"" }'
)


def application(collection: Collection) -> web.Application:
    """The API as an aiohttp application; what it serves lives in `collection`."""
    app = web.Application(middlewares=[_go_manners, _no_browsers], client_max_size=BODY_BYTES_MAX)
    app.on_response_prepare.append(_name_the_server)
    app.add_routes(_Api(collection).routes())
    return app


class _Api:
    """The handlers. A body is decoded and checked whole before anything changes."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    def routes(self) -> list[web.RouteDef]:
        """Every method and path there is; any other method on a known path is 405."""
        one, many = "/proxies/{proxy}", "/proxies/{proxy}/toxics"
        toxic = many + "/{toxic}"
        return [
            web.get("/version", self.version, allow_head=False),
            web.post("/reset", self.reset),
            web.post("/populate", self.populate),
            web.get("/proxies", self.list_proxies, allow_head=False),
            web.post("/proxies", self.create_proxy),
            web.get(one, self.show_proxy, allow_head=False),
            web.post(one, self.update_proxy),
            web.patch(one, self.update_proxy),
            web.delete(one, self.delete_proxy),
            web.get(many, self.list_toxics, allow_head=False),
            web.post(many, self.create_toxic),
            web.get(toxic, self.show_toxic, allow_head=False),
            web.post(toxic, self.update_toxic),
            web.patch(toxic, self.update_toxic),
            web.delete(toxic, self.delete_toxic),
        ]

    async def version(self, _request: web.Request) -> web.Response:
        body = f'{{"version": "{VERSION}"}}\n'.encode()
        return web.Response(body=body, headers={"Content-Type": "application/json;charset=utf-8"})

    async def reset(self, _request: web.Request) -> web.Response:
        await self._collection.reset()
        return web.Response(status=204)

    async def populate(self, request: web.Request) -> web.Response:
        try:
            specs = _proxy_specs(await _body(request))
        except ApiError as error:
            return _populated([], error)
        return _populated(*await self._collection.populate(specs))

    async def list_proxies(self, _request: web.Request) -> web.Response:
        return _json({proxy.name: proxy.describe() for proxy in self._collection.all()})

    async def create_proxy(self, request: web.Request) -> web.Response:
        given = _decoded(await _body(request), "toxiproxy.Proxy", "Proxy", _PROXY_FIELDS)
        spec = _proxy_spec(given, "")
        return _json((await self._collection.create(spec)).describe(), status=201)

    async def show_proxy(self, request: web.Request) -> web.Response:
        return _json(self._proxy(request).describe())

    async def update_proxy(self, request: web.Request) -> web.Response:
        proxy = self._proxy(request)
        given = _decoded(await _body(request), "toxiproxy.Proxy", "Proxy", _PROXY_FIELDS)
        changed = await self._collection.change(
            proxy.name,
            str(given.get("listen", proxy.listen)),
            str(given.get("upstream", proxy.upstream)),
            bool(given.get("enabled", proxy.enabled)),
        )
        return _json(changed.describe())

    async def delete_proxy(self, request: web.Request) -> web.Response:
        await self._collection.delete(request.match_info["proxy"])
        return web.Response(status=204)

    async def list_toxics(self, request: web.Request) -> web.Response:
        return _json([toxic.describe() for toxic in self._proxy(request).toxics])

    async def create_toxic(self, request: web.Request) -> web.Response:
        self._proxy(request)  # a wrong name is said before the body is looked at
        body = await _body(request)
        proxy = self._proxy(request)  # and it may have gone while the body came
        toxic = _new_toxic(body, proxy)
        proxy.add_toxic(toxic)
        return _json(toxic.describe())

    async def show_toxic(self, request: web.Request) -> web.Response:
        return _json(self._proxy(request).toxic(request.match_info["toxic"]).describe())

    async def update_toxic(self, request: web.Request) -> web.Response:
        self._proxy(request)
        body = await _body(request)
        proxy = self._proxy(request)
        toxic = _updated_toxic(body, proxy.toxic(request.match_info["toxic"]))
        proxy.update_toxic(toxic)
        return _json(toxic.describe())

    async def delete_toxic(self, request: web.Request) -> web.Response:
        self._proxy(request).remove_toxic(request.match_info["toxic"])
        return web.Response(status=204)

    def _proxy(self, request: web.Request) -> Proxy:
        return self._collection.get(request.match_info["proxy"])


def _proxy_spec(given: dict[str, Scalar], where: str) -> ProxySpec:
    for name in ("name", "upstream"):
        if not given.get(name):
            raise api_error.missing_field(name + where)
    return ProxySpec(
        name=str(given["name"]),
        listen=str(given.get("listen", "")),
        upstream=str(given["upstream"]),
        enabled=bool(given.get("enabled", True)),
    )


def _proxy_specs(body: bytes) -> list[ProxySpec]:
    try:
        entries = gojson.elements(gojson.decode(body), f"[]{_GO_POPULATE}")
        given = [gojson.fields(entry, _GO_POPULATE, "", _PROXY_FIELDS) for entry in entries]
    except GoJsonError as error:
        raise api_error.bad_request_body(error) from None
    return [_proxy_spec(each, f" at proxy {number}") for number, each in enumerate(given, start=1)]


def _new_toxic(body: bytes, proxy: Proxy) -> Toxic:
    """The toxic a body asks for; checked in the order stream, type, name, attributes."""
    given = _decoded(body, "toxics.ToxicWrapper", "ToxicWrapper", _TOXIC_FIELDS)
    attributes = gojson.member(gojson.decode(body), "attributes")
    _check_object(attributes, "ToxicWrapper.attributes", "toxics.NoopToxic")
    stream, type_ = str(given.get("stream", "downstream")), str(given.get("type", ""))
    direction = Direction.of(stream)
    if direction is None:
        raise api_error.invalid_stream()
    if type_ not in toxics.KINDS:
        raise api_error.invalid_toxic_type()
    name = str(given.get("name", "")) or f"{type_}_{stream}"
    if proxy.has_toxic(name):
        raise api_error.toxic_exists()
    return Toxic(
        name=name,
        stream=stream,
        direction=direction,
        toxicity=float(given.get("toxicity", 1.0)),
        kind=_merged(toxics.KINDS[type_](), attributes),
    )


def _updated_toxic(body: bytes, toxic: Toxic) -> Toxic:
    """The toxic with a body's attributes and toxicity over its own; its name, type and stream stay."""
    given = _decoded(body, _GO_UPDATE, "", {"toxicity": "float32"})
    kind = _merged(toxic.kind, gojson.member(gojson.decode(body), "attributes"))
    return replace(toxic, kind=kind, toxicity=float(given.get("toxicity", toxic.toxicity)))


def _merged(kind: toxics.Kind, attributes: object) -> toxics.Kind:
    try:
        return kind.merged(attributes)
    except (GoJsonError, InvalidAttributeError) as error:
        raise api_error.bad_request_body(error) from None


def _check_object(value: object, path: str, go_type: str) -> None:
    try:
        gojson.struct_field(value, go_type, path)
    except GoJsonError as error:
        raise api_error.bad_request_body(error) from None


def _decoded(body: bytes, go_type: str, struct_name: str, wanted: dict[str, str]) -> dict[str, Scalar]:
    try:
        return gojson.fields(gojson.decode(body), go_type, struct_name, wanted)
    except GoJsonError as error:
        raise api_error.bad_request_body(error) from None


async def _body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise ApiError(f"request body too large: at most {BODY_BYTES_MAX} bytes are read", 413) from None


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(
        body=gojson.encode(value).encode(), status=status, headers={"Content-Type": "application/json"}
    )


def _populated(proxies: list[Proxy], failure: ApiError | None) -> web.Response:
    """The answer of /populate: what was done, and the error beside it, in one object."""
    said = {"error": failure.message, "status": failure.status} if failure else {}
    shown = [proxy.describe() for proxy in proxies] or None
    return _json({**said, "proxies": shown}, status=failure.status if failure else 201)


def _plain(text: str, status: int) -> web.Response:
    """Go's http.Error: the text, a newline, and a content type nobody may guess at."""
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=f"{text}\n".encode(), status=status, headers=headers)


@web.middleware
async def _go_manners(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer what goes wrong the way the original does."""
    try:
        return await handler(request)
    except ApiError as error:
        return _plain(gojson.encode({"error": error.message, "status": error.status}), error.status)
    except web.HTTPMethodNotAllowed:
        return web.Response(status=405)
    except web.HTTPNotFound:
        return _plain("404 page not found", 404)


@web.middleware
async def _no_browsers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse browsers, so that no web page can drive a Toxiproxy on its visitor's machine."""
    known_path = request.match_info.http_exception is None
    if known_path and request.headers.get("User-Agent", "").startswith("Mozilla/"):
        return _plain("User agent not allowed", 403)
    return await handler(request)


async def _name_the_server(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = EMBEDDED_SERVER
