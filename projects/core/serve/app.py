"""The served page and what it asks for, over HTTP.

Whoever may use it is kept apart from all others by three means. Requests name
the server as it was told to be named (``Host``), so that no other name can be
made to lead here. A browser says which page sends (``Origin``,
``Sec-Fetch-Site``), and only this one may. And each visit has a secret, which
is in the address of all that belongs to it.

Files come one in a request, as its body: there are no forms to be parsed,
nothing is unpacked, and limits hold while they come.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import (
    AsyncIterator,
    Dict,
    Iterator,
    List,
    Literal,
    Optional,
    Sequence,
)
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from projects.core.export import export
from projects.core.files import DataError
from projects.core.projections import DTYPES
from projects.core.rig import Rig
from projects.core.serve.uploads import IMAGES
from projects.core.serve.visits import (
    Busy,
    Finder,
    Gone,
    Limits,
    TooMuch,
    Visits,
)

__all__ = ['create_app']

_PREFIX, _FRESH = 'mv2d-xray-serve-', 60.  # s
_PAGE = Path(__file__).with_name('page.html')
_DOWNLOADS = {'csv': ('csv', '.csv', 'text/csv'),
              'slicer': ('slicer', '.mrk.json', 'application/json')}
_HEADERS = {
    'cache-control': 'no-store',
    'content-security-policy':
        "default-src 'none'; script-src 'unsafe-inline'; style-src "
        "'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; "
        "frame-src 'self'; frame-ancestors 'self'; base-uri 'none'; "
        "form-action 'none'",
    'cross-origin-resource-policy': 'same-origin',
    'referrer-policy': 'no-referrer',
    'x-content-type-options': 'nosniff',
}


class _OwnPageOnly:
    """Refuses what another page sends, and sets the headers of all answers."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get('origin')
        site = headers.get('sec-fetch-site', 'none')
        # A link that leads to the page is no harm.
        linked = (scope['method'] == 'GET' and scope['path'] == '/'
                  and headers.get('sec-fetch-mode') == 'navigate')
        app = self.app
        if (origin is not None and urlsplit(origin).netloc
                != headers.get('host')) or (
                    site not in ('same-origin', 'none') and not linked):
            app = JSONResponse(dict(detail='expected a request of this '
                                    'page, found one of another'), 403)

        async def send_with_headers(message) -> None:
            if message['type'] == 'http.response.start':
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await app(scope, receive, send_with_headers)


class _Run(BaseModel):
    """What a person says of an object."""
    model_config = ConfigDict(extra='forbid')
    name: str = Field('object', max_length=200)
    rig: Optional[str] = Field(None, max_length=200)
    scale: Optional[float] = None
    offset: Optional[float] = None
    open_field: Optional[List[int]] = Field(
        None, min_length=4, max_length=4)
    shape: Optional[List[int]] = Field(None, min_length=2, max_length=3)
    dtype: Optional[Literal[DTYPES]] = None  # type: ignore[valid-type]

    def reading(self) -> dict:
        """What is said of the images, of a ``Reading``."""
        return self.model_dump(exclude={'name', 'rig'})


def create_app(finder: Finder, rigs: Dict[str, Rig], hosts: Sequence[str],
               model_name: str, limits: Optional[Limits] = None) -> FastAPI:
    """The application, for any ASGI server.

    Args:
        finder: See :data:`~projects.core.serve.visits.Finder`.
        rigs: That a person may pick, by name; may be empty.
        hosts: Names by which browsers may call the server, without port.
        model_name: Shown on the page.
        limits: Of what is sent.
    """
    limits = limits or Limits()

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(_clean)
        with tempfile.TemporaryDirectory(
                prefix=_PREFIX, ignore_cleanup_errors=True) as root, _held(
                    root):
            visits = app.state.visits = Visits(Path(root), finder, rigs,
                                               limits)
            visits.start()
            sweeper = asyncio.create_task(_sweep(visits))
            try:
                yield
            finally:
                sweeper.cancel()
                await asyncio.to_thread(visits.end)

    # Pages of documentation would come from another server.
    app = FastAPI(title='MV2D-Xray', lifespan=life, openapi_url=None,
                  docs_url=None, redoc_url=None)
    app.add_middleware(_OwnPageOnly)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts),
                       www_redirect=False)
    for error, status, sentence in (
            (Gone, 404, 'The files have been deleted; drop the views again.'),
            (Busy, 503, 'Too many people are using this page; try again in '
             'a minute.'),
            (TooMuch, 413, None), (DataError, 422, None)):
        app.add_exception_handler(error, _answer(status, sentence))

    @app.get('/')
    def page() -> HTMLResponse:
        return HTMLResponse(_PAGE.read_text(encoding='utf-8'))

    @app.post('/visits')
    def begin() -> dict:
        return dict(visit=app.state.visits.open().token)

    @app.get('/about')
    def about() -> dict:
        return dict(
            model=model_name, rigs=list(rigs), suffixes=[*IMAGES, '.json'],
            dtypes=DTYPES,
            file_bytes=limits.file_bytes, total_bytes=limits.total_bytes,
            files=limits.files, minutes=limits.minutes)

    @app.put('/visits/{token}/files/{name}')
    async def receive(token: str, name: str, request: Request) -> dict:
        return dict(bytes=await _receive(app.state.visits, token, name,
                                         request))

    @app.post('/visits/{token}/run')
    def run(token: str, told: _Run) -> dict:
        # It will be the name of files.
        name = re.sub(r'[^\w+-]+', '_', told.name)[:60].strip('_')
        app.state.visits.run(token, name or 'object', told.rig,
                             told.reading())
        return {}

    @app.get('/visits/{token}')
    def state(token: str) -> dict:
        visits = app.state.visits
        visit = visits.get(token)
        return dict(state=visit.state, before=visits.position(visit),
                    told=visit.told, name=visit.object_name)

    @app.get('/visits/{token}/report')
    def report(token: str) -> HTMLResponse:
        found = _found(app.state.visits, token)[0] / 'report.html'
        return HTMLResponse(found.read_bytes())

    @app.get('/visits/{token}/boxes')
    def boxes(token: str, format: str, threshold: float) -> Response:
        folder, name = _found(app.state.visits, token)
        if format not in _DOWNLOADS or not 0 <= threshold <= 1:
            raise DataError(f'expected a format of {", ".join(_DOWNLOADS)} '
                            'and a threshold of 0 to 1, found others')
        kind, suffix, media_type = _DOWNLOADS[format]
        with tempfile.TemporaryDirectory(dir=folder) as out:
            path, = export(folder / f'{name}.json', out, [kind], threshold)
            content = path.read_bytes()
        return Response(content, media_type=media_type, headers={
            'content-disposition': _attachment(f'{name}{suffix}')})

    @app.post('/visits/{token}/leave')
    def leave(token: str) -> dict:
        app.state.visits.leave(token)
        return {}

    return app


@contextlib.contextmanager
def _held(folder: str) -> Iterator[None]:
    """Show other servers that a folder is in use; a kill ends it, too.

    Raises:
        BlockingIOError: It is in use.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _clean() -> None:
    """Delete what servers that were killed have left behind."""
    for folder in Path(tempfile.gettempdir()).glob(f'{_PREFIX}*'):
        with contextlib.suppress(OSError):
            told = folder.lstat()
            # One that has just been made is not held yet.
            if told.st_uid == os.getuid() and told.st_mtime < (
                    time.time() - _FRESH):
                with _held(str(folder)):
                    shutil.rmtree(folder, ignore_errors=True)


def _answer(status: int, sentence: Optional[str]):
    def handler(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(dict(detail=sentence or str(error)), status)
    return handler


def _attachment(name: str) -> str:
    """Names may be in any script; headers may not."""
    plain = re.sub(r'[^\w.+-]', '_', name, flags=re.ASCII)
    coded = ''.join(f'%{byte:02X}' for byte in name.encode())
    return f'attachment; filename="{plain}"; filename*=UTF-8\'\'{coded}'


async def _sweep(visits: Visits) -> None:
    while True:
        await asyncio.sleep(5)
        await asyncio.to_thread(visits.sweep)


def _found(visits: Visits, token: str):
    """Folder and name of what a visit found.

    Raises:
        Gone: Nothing yet.
    """
    visit = visits.get(token)
    if visit.state != 'done':
        raise Gone
    return visit.folder / 'found', visit.object_name


async def _receive(visits: Visits, token: str, name: str,
                   request: Request) -> int:
    """Keep the body of a request; nothing of it if it is not whole."""
    limits, size, whole = visits.limits, 0, False
    path = visits.begin_file(token, name)
    too_large = TooMuch(f'{name}: expected at most '
                        f'{limits.file_bytes / 2**20:g} MB, found more')
    try:
        announced = request.headers.get('content-length', '0')
        if not announced.isdigit() or int(announced) > limits.file_bytes:
            raise too_large
        chunks = request.stream()
        with path.open('wb') as stream:
            while True:
                try:
                    chunk = await asyncio.wait_for(
                        anext(chunks), limits.stalled)
                except StopAsyncIteration:
                    break
                if size + len(chunk) > limits.file_bytes:
                    raise too_large
                visits.take(token, name, len(chunk))
                size += len(chunk)
                stream.write(chunk)
        if not size:
            raise DataError(f'{name}: expected a file, found an empty one')
        whole = True
    except (ClientDisconnect, asyncio.TimeoutError):
        raise DataError(f'{name}: expected a whole file, found a part of '
                        'one') from None
    except FileNotFoundError:  # left in between
        raise Gone from None
    finally:
        if not whole:
            path.unlink(missing_ok=True)
        with contextlib.suppress(Gone):
            visits.end_file(token, name, size, whole)
    return size
