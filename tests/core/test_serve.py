"""The served page's other side: who may ask, what may be sent, what is left
of it. Over real connections."""

import contextlib
import http.client
import io
import json
import os
import socket
import struct
import tempfile
import threading
import time
import zipfile
import zlib

import cv2
import numpy as np
import pytest
import uvicorn

from projects.core.files import DataError
from projects.core.report import write_object_report
from projects.core.results import dump_boxes
from projects.core.rig import Rig
from projects.core.serve import Limits, create_app
from projects.core.serve.uploads import check_image, load_rig

RIG = Rig.circle(3, image_size=64)
LIMITS = dict(file_bytes=60_000, total_bytes=150_000, files=6, visits=4,
              held_bytes=300_000, minutes=30., stalled=.5)


class Finder:
    """One box in each object; what it is told to do otherwise."""

    def __init__(self):
        self.go, self.saw = threading.Event(), []
        self.go.set()
        self.fails = None

    def __call__(self, paths, rig, out_dir, name, reading):
        self.reading = reading
        self.go.wait(20)
        if self.fails:
            raise self.fails(f'{paths[0]}: no good')
        images = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in paths]
        self.saw.append((name, [p.name for p in paths],
                         [i.max() for i in images]))
        box = np.array([[1., 2, 3, 4, 4, 4, 0]])
        dump_boxes(out_dir / f'{name}.json', box, [.5], [0], ['pore'])
        write_object_report(
            out_dir / 'report.html', name, np.stack(images),
            np.stack([v.ct2img for v in rig.views]),
            [v.name for v in rig.views], box, [.5], ['pore'])
        return ['a note']


class Client:
    """A program that asks."""

    def __init__(self, app, finder, port):
        self.app, self.finder, self.port = app, finder, port
        self.answers = []

    @property
    def root(self):
        return self.app.state.visits.root

    def ask(self, method, path, body=None, **headers):
        link = http.client.HTTPConnection('127.0.0.1', self.port, timeout=20)
        with contextlib.closing(link):
            link.request(method, path, body, {
                k.replace('_', '-'): v for k, v in headers.items()})
            answer = link.getresponse()
            content = answer.read()
        self.answers.append(str(answer.headers).encode() + content)
        with contextlib.suppress(ValueError):
            content = json.loads(content)
        return answer.status, content

    def begin(self):
        status, told = self.ask('POST', '/visits')
        assert status == 200, told
        return told['visit']

    def put(self, visit, name, body):
        return self.ask('PUT', f'/visits/{visit}/files/{name}', body)

    def run(self, visit, **told):
        return self.ask('POST', f'/visits/{visit}/run', json.dumps(told),
                        content_type='application/json')

    def wait(self, visit, *states):
        for _ in range(400):
            told = self.ask('GET', f'/visits/{visit}')[1]
            if told['state'] in (states or ('done', 'failed')):
                return told
            time.sleep(.02)
        raise AssertionError(told)

    def refusal(self, files, rig='given'):
        """The sentence that files end in."""
        visit = self.begin()
        for name, body in files.items():
            status, told = self.put(visit, name, body)
            if status != 200:
                return told['detail']
        assert self.run(visit, rig=rig)[0] == 200
        told = self.wait(visit)
        assert told['state'] == 'failed'
        self.ask('POST', f'/visits/{visit}/leave')
        return told['told'][0]

    def on_disk(self):
        return sorted(p.name for p in self.root.rglob('*') if p.is_file())


@contextlib.contextmanager
def serve(**limits):
    finder = Finder()
    app = create_app(finder, {'given': RIG}, ['127.0.0.1'], 'a model',
                     Limits(**{**LIMITS, **limits}))
    listener = socket.create_server(('127.0.0.1', 0))
    server = uvicorn.Server(uvicorn.Config(
        app, log_level='critical', http='h11', loop='asyncio', ws='none'))
    thread = threading.Thread(target=server.run,
                              kwargs=dict(sockets=[listener]))
    thread.start()
    while not server.started:
        time.sleep(.01)
    client = Client(app, finder, listener.getsockname()[1])
    root = client.root
    yield client
    finder.go.set()
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive() and not root.exists()
    for answer in client.answers:  # wherever it is
        assert b'/tmp' not in answer and str(root).encode() not in answer


@pytest.fixture
def client():
    with serve() as client:
        yield client


def png(value=1000, size=(64, 64)):
    return cv2.imencode('.png', np.full(size, value, np.uint16))[1].tobytes()


def tiff(value=1000):
    return cv2.imencode('.tif', np.full((64, 64), value, np.uint16))[
        1].tobytes()


def chunk(kind, data):
    return (struct.pack('>I', len(data)) + kind + data
            + struct.pack('>I', zlib.crc32(kind + data)))


def png_that_says(width, height, *more, rows=b'\0'):
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack(
        '>IIBBBBB', width, height, 16, 0, 0, 0, 0)) + b''.join(more)
        + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


def tiff_that_says(**tags):
    """One strip of 64 x 64 px with other tags."""
    numbers = dict(width=256, height=257, bits=258, compression=259,
                   photometric=262, offset=273, samples=277, rows=278,
                   bytes=279, tile_width=322, tile_length=323)
    values = dict(width=64, height=64, bits=16, compression=1, photometric=1,
                  offset=8, samples=1, rows=64, bytes=8192)
    values.update(tags)
    entries = sorted((numbers[k], v) for k, v in values.items())
    return (b'II*\0' + struct.pack('<I', 8 + 8192) + b'\1' * 8192
            + struct.pack('<H', len(entries)) + b''.join(
                struct.pack('<HHII', tag, 4, 1, value)
                for tag, value in entries) + bytes(4))


THREE = {f'CAM_0{i}.png': png(i + 1) for i in range(3)}


def test_from_views_to_boxes(client):
    visit = client.begin()
    for name, body in THREE.items():
        assert client.put(visit, name, body)[0] == 200
    assert client.run(visit, name='blade 1/../ü', rig='given')[0] == 200
    told = client.wait(visit)
    assert told == dict(state='done', before=0, told=['a note'],
                        name='blade_1_ü')
    assert client.finder.saw == [('blade_1_ü', list(THREE), [1, 2, 3])]
    address = f'/visits/{visit}/boxes?format='
    status, table = client.ask('GET', f'{address}csv&threshold=0.4')
    assert status == 200 and table.decode().splitlines()[1].startswith(
        'blade_1_ü,pore,0.5,1,2,3,4,4,4,0')
    table = client.ask('GET', f'{address}csv&threshold=0.6')[1]
    assert len(table.decode().splitlines()) == 1
    marks = client.ask('GET', f'{address}slicer&threshold=0')[1]
    assert marks['markups'][0]['center'] == [1, 2, 3]
    page = client.ask('GET', f'/visits/{visit}/report')[1]
    assert b'id="threshold"' in page
    for wrong in ('csv&threshold=nan', 'csv&threshold=2', 'sr&threshold=0',
                  'csv'):
        assert client.ask('GET', f'{address}{wrong}')[0] == 422
    assert client.on_disk()
    client.ask('POST', f'/visits/{visit}/leave')
    assert client.on_disk() == []
    assert client.ask('GET', f'{address}csv&threshold=0')[0] == 404


def test_names_and_order_of_the_views(client):
    shots = {f'shot_{i}.tif': tiff(i) for i in (10, 9, 2)}
    visit = client.begin()
    for name, body in {**shots, 'rig.json': json.dumps(RIG.to_dict())}.items():
        assert client.put(visit, name, body)[0] == 200
    client.run(visit)
    told = client.wait(visit)
    assert told['state'] == 'done'
    assert 'in the order of their names, shot_2.tif as CAM_00' in (
        told['told'][0])
    assert client.finder.saw[0][1:] == (
        ['shot_2.tif', 'shot_9.tif', 'shot_10.tif'], [2, 9, 10])
    two = dict(list(THREE.items())[:2])
    assert client.refusal(two) == (
        'images: expected one for each of the 3 views of the rig, found none '
        'for CAM_02')
    assert 'expected 3, one for each view' in client.refusal(
        {f'{i}.png': png() for i in range(4)})
    assert 'expected rig.json beside the images, found none' in (
        client.refusal(THREE, None))
    assert client.refusal({}).startswith('images: expected 3')


def test_what_is_said_of_the_images(client):
    visit = client.begin()
    for name, body in {**THREE, 'dark_1.tif': tiff(1), 'Flat.png': png(9),
                       'flat2.png': png(8)}.items():
        assert client.put(visit, name, body)[0] == 200
    for wrong in (dict(dtype='object', shape=[4, 4]), dict(shape=[4]),
                  dict(open_field=[1, 2, 3]), dict(flat=['/etc/passwd']),
                  dict(scale='many'), dict(scale=.1), dict(shape=[4, 4])):
        assert client.run(visit, rig='given', **wrong)[0] == 422, wrong
    assert client.run(visit, rig='given', shape=[64, 64],
                      dtype='>uint16')[0] == 200
    assert client.wait(visit)['state'] == 'done'
    reading = client.finder.reading
    assert [p.split('/')[-1] for p in reading.flat] == [
        'Flat.png', 'flat2.png']
    assert [p.split('/')[-1] for p in reading.dark] == ['dark_1.tif']
    assert reading.shape == [64, 64] and reading.dtype == '>uint16'
    assert client.finder.saw[0][1] == list(THREE)
    # A flat image is looked at as the others are.
    assert 'flat.png: image size: expected 64 x 64 px' in client.refusal(
        {**THREE, 'flat.png': png_that_says(30000, 30000)})
    # One file may have all views.
    visit = client.begin()
    client.put(visit, 'scan.raw', bytes(64 * 64 * 6))
    client.finder.fails = DataError
    client.run(visit, rig='given', shape=[3, 64, 64], dtype='uint16')
    assert client.wait(visit)['told'] == ['scan.raw: no good']


def test_what_killed_servers_leave_is_cleaned(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    old, fresh, link, other = (tmp_path / f'mv2d-xray-serve-{name}'
                               for name in ('old', 'fresh', 'link', 'x'))
    (tmp_path / 'precious').mkdir()
    (tmp_path / 'precious' / 'a').write_text('')
    for folder in (old, fresh):
        (folder / 'visit').mkdir(parents=True)
    link.symlink_to(tmp_path / 'precious')
    other.write_text('')
    long_ago = time.time() - 3600
    for path in (old, tmp_path / 'precious', other):
        os.utime(path, (long_ago, long_ago))
    os.utime(link, (long_ago, long_ago), follow_symlinks=False)
    with serve() as client:
        assert not old.exists() and fresh.exists() and other.exists()
        assert (link / 'a').exists()
        os.utime(client.root, (long_ago, long_ago))
        with serve() as second:  # the first is alive
            assert client.root.exists() and second.root != client.root


@pytest.mark.parametrize('name, expected', [
    ('..%2F..%2Fetc%2Fpasswd.png', 404), ('%2Fetc%2Fx.png', 404),
    ('..', 422), ('.hidden.png', 422), ('a%00.png', 422), ('a%0a.png', 422),
    ('..%5C..%5Cx.png', 422), ('a..png', 422), ('x' * 101 + '.png', 422),
    ('views.zip', 422), ('page.html', 422), ('noending', 422),
    ('%FF%FE.png', 422), ('a%3Cb.png', 422)])
def test_names_that_are_none(client, name, expected):
    visit = client.begin()
    assert client.put(visit, name, png())[0] == expected
    assert client.on_disk() == []


def images(first):
    return {**THREE, 'CAM_00.png': first}


def test_images_that_are_none(client):
    """Each is refused by its header; nothing is unpacked."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('CAM_00.png', bytes(20_000_000))
    neither = 'CAM_00.png: image: expected a PNG or TIFF, found neither'
    size = 'CAM_00.png: image size: expected 64 x 64 px as in the rig, found '
    tiles = 'CAM_00.png: image: expected up to 4 samples a pixel in tiles'
    bomb = zlib.compress(bytes(40_000_000))  # 39 kB
    for first, sentence in (
            (packed.getvalue(), neither), (b'GIF89a' + bytes(99), neither),
            (cv2.imencode('.jpg', np.zeros((64, 64)))[1].tobytes(), neither),
            (b'<svg onload="alert(1)">', neither), (b'\0', neither),
            (png()[:20], neither), (png(size=(64, 32)), f'{size}32 x 64'),
            (png_that_says(2**31 - 1, 2**31 - 1), size),
            (png_that_says(30000, 30000), size),
            (png_that_says(64, 64, chunk(b'zTXt', b'a\0\0' + bomb)), neither),
            (tiff_that_says(width=2**31, height=2**31), size),
            (tiff_that_says(tile_width=2**24, tile_length=2**24), tiles),
            (tiff_that_says(samples=60000), neither)):
        began = time.monotonic()
        assert client.refusal(images(first)).startswith(sentence), first[:40]
        assert time.monotonic() - began < 2
    assert client.finder.saw == []
    # Its size is right: the decoder has as many rows as that.
    visit = client.begin()
    for name, body in images(png_that_says(
            64, 64, rows=bytes(40_000_000))).items():
        assert client.put(visit, name, body)[0] == 200
    client.run(visit, rig='given')
    assert client.wait(visit)['state'] == 'done'


@pytest.mark.parametrize('name, whole', [
    ('a.png', png()), ('a.tif', tiff()),
    ('rig.json', json.dumps(RIG.to_dict()).encode())])
def test_damaged_files_are_told_or_taken(tmp_path, name, whole):
    """600 of each: nothing but a sentence, and soon."""
    rng, path, refused = np.random.default_rng(0), tmp_path / name, 0
    for case in range(600):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 9)):
            data[place] = rng.integers(256)
        if case % 3 == 0:  # headers are at the ends
            data[int(rng.integers(40))] = 255
            data[-int(rng.integers(1, 120))] = 255
        path.write_bytes(data[:rng.integers(1, len(data))]
                         if case % 4 == 0 else data)
        began = time.monotonic()
        try:
            if name == 'rig.json':
                rig = load_rig(path, 10**6, 6)
                assert sum(v.width * v.height for v in rig.views) <= 10**6
            else:
                check_image(path, 64, 64)
        except DataError as error:
            refused += 1
            assert '\n' not in str(error) and len(str(error)) < 2000
        assert time.monotonic() - began < 1
    assert 100 < refused < 600


@pytest.mark.parametrize('content, sentence', [
    (b'[' * 50000, 'rig.json: is not JSON'), (b'{}', 'field "views"'),
    (b'\xff\xfe', 'is not JSON'), (b'{"views": [{}]}', 'views[0]: field'),
    (dict(width=1e300), 'expected at most'),
    (dict(width=10**5, height=10**5), 'at most 134217728 px in all views'),
    (dict(cam2img=[[1e400, 0, 0], [0, 1, 0], [0, 0, 1]]), 'finite'),
    (dict(cam2img='a' * 999), 'field "cam2img"'),
    (dict(name='../../x'), 'field "name"'), (3000, 'expected at most 6')])
def test_rigs_that_are_none(client, content, sentence):
    if not isinstance(content, bytes):
        rig = RIG.to_dict()
        if isinstance(content, dict):
            rig['views'][0].update(content)
        else:
            short = dict(rig['views'][0])
            rig['views'] = [dict(short, name=f'a{i}') for i in range(7)]
        content = json.dumps(rig).encode()
    told = client.refusal({**THREE, 'rig.json': content}, None)
    assert sentence in told and len(told) < 400


def test_too_many_and_too_large(client):
    visit = client.begin()
    status, told = client.put(visit, 'a.png', bytes(60_001))
    assert status == 413 and told['detail'].startswith('a.png: expected at')
    # Without a length that is told before.
    link = http.client.HTTPConnection('127.0.0.1', client.port, timeout=20)
    link.request('PUT', f'/visits/{visit}/files/b.png',
                 iter([bytes(30_000)] * 3), encode_chunked=True,
                 headers={'Transfer-Encoding': 'chunked'})
    assert link.getresponse().status == 413
    link.close()
    assert client.on_disk() == []
    assert client.put(visit, 'e.png', b'')[0] == 422
    for i in range(2):
        assert client.put(visit, f'{i}.png', bytes(60_000))[0] == 200
    assert client.put(visit, '0.png', bytes(9))[0] == 422  # is there
    status, told = client.put(visit, '2.png', bytes(40_000))
    assert status == 413 and 'in all files' in told['detail']
    for i in range(3, 7):
        assert client.put(visit, f'{i}.png', b'1')[0] == 200
    status, told = client.put(visit, '7.png', b'1')
    assert status == 413 and 'at most 6' in told['detail']
    other = client.begin()
    for i in range(2):
        assert client.put(other, f'{i}.png', bytes(60_000))[0] == 200
    third = client.begin()
    assert client.put(third, 'a.png', bytes(59_000))[0] == 200
    assert client.put(third, 'b.png', bytes(59_000))[0] == 503
    client.begin()
    assert client.ask('POST', '/visits')[0] == 503
    client.ask('POST', f'/visits/{visit}/leave')
    assert client.put(third, 'b.png', bytes(59_000))[0] == 200
    assert client.ask('POST', '/visits', 'x' * 10**6)[0] in (200, 413)


@pytest.mark.parametrize('stays', [False, True])
def test_half_of_a_file(client, stays):
    """The sender goes, or only is silent."""
    visit = client.begin()
    link = socket.create_connection(('127.0.0.1', client.port), 20)
    link.sendall(f'PUT /visits/{visit}/files/CAM_00.png HTTP/1.1\r\nHost: '
                 '127.0.0.1\r\nContent-Length: 9000\r\n\r\n'.encode()
                 + bytes(4000))
    while not client.on_disk():
        time.sleep(.01)
    assert client.run(visit, rig='given')[0] == 422  # not all has come
    if stays:
        with link.makefile('rb') as answer:
            assert b' 422 ' in answer.readline()
    link.close()
    for _ in range(200):
        if not client.on_disk():
            break
        time.sleep(.02)
    assert client.on_disk() == []
    assert client.app.state.visits.get(visit).files == {}
    assert client.put(visit, 'CAM_00.png', png())[0] == 200  # once more


def test_headers_without_end(client):
    link = socket.create_connection(('127.0.0.1', client.port), 20)
    with contextlib.suppress(ConnectionError):
        link.sendall(b'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n'
                     + b'A: ' + b'b' * 10**6)
        assert link.recv(100).split()[1] in (b'400', b'431')
    link.close()
    assert client.ask('GET', '/about')[0] == 200


def send(client, visit, name, **headers):
    return client.ask('PUT', f'/visits/{visit}/files/{name}', png(), **headers)


def test_no_other_page_may_ask(client):
    visit, own = client.begin(), f'http://127.0.0.1:{client.port}'
    assert send(client, visit, 'a.png', Origin=own,
                Sec_Fetch_Site='same-origin')[0] == 200
    for headers in (
            dict(Origin='http://evil.example'), dict(Origin='null'),
            dict(Origin=f'http://127.0.0.1:{client.port + 1}'),
            dict(Origin=f'{own}.evil.example'),
            dict(Sec_Fetch_Site='cross-site'),
            dict(Sec_Fetch_Site='same-site'),
            dict(Origin=own, Sec_Fetch_Site='cross-site')):
        assert send(client, visit, 'b.png', **headers)[0] == 403
        assert client.ask('POST', '/visits', **headers)[0] == 403
    # A name of the attacker's that leads here.
    for host in ('evil.example', f'evil.example:{client.port}', ''):
        assert client.ask('GET', '/', Host=host)[0] == 400
    assert client.ask('GET', '/', Sec_Fetch_Site='cross-site',
                      Sec_Fetch_Mode='navigate')[0] == 200
    assert client.ask('GET', '/about', Sec_Fetch_Site='cross-site',
                      Sec_Fetch_Mode='navigate')[0] == 403
    assert client.on_disk() == ['a.png']
    assert client.ask('GET', '/visits/other')[0] == 404
    for path in ('/docs', '/openapi.json', '/%2e%2e/%2e%2e/etc/passwd'):
        assert client.ask('GET', path)[0] == 404
    head = client.answers[0].lower()
    for line in (b'frame-ancestors \'self\'', b'cache-control: no-store',
                 b'x-content-type-options: nosniff'):
        assert line in head
    assert b'access-control' not in b''.join(client.answers).lower()


def test_several_wait_in_a_queue(client):
    client.finder.go.clear()
    visits = [client.begin() for _ in range(4)]
    for i, visit in enumerate(visits):
        for name, body in THREE.items():
            client.put(visit, name, body)
        client.run(visit, name=f'object{i}', rig='given')
        client.wait(visits[0], 'working')
    before = [client.ask('GET', f'/visits/{v}')[1]['before'] for v in visits]
    assert before[1:] == [1, 2, 3]
    assert client.run(visits[1])[0] == 422  # only once
    assert client.put(visits[1], 'new.png', png())[0] == 422
    assert client.ask('GET', f'/visits/{visits[1]}/report')[0] == 404
    # One goes while it waits, one while the model is busy with it.
    for visit in visits[:2]:
        client.ask('POST', f'/visits/{visit}/leave')
    assert client.ask('GET', f'/visits/{visits[2]}')[1]['before'] == 1
    client.finder.go.set()
    for visit in visits[2:]:
        assert client.wait(visit)['state'] == 'done'
    assert [name for name, *_ in client.finder.saw] == [
        'object0', 'object2', 'object3']
    assert len([p for p in client.root.iterdir()]) == 2


def test_what_fails_is_told_and_the_next_goes_on(client, caplog):
    for error, told in ((DataError, 'CAM_00.png: no good'),
                        (KeyError, 'the log of the server says why')):
        client.finder.fails = error
        assert client.refusal(THREE).endswith(told)
    assert 'no good' in caplog.text
    client.finder.fails = None
    test_from_views_to_boxes(client)


def test_files_of_who_is_not_heard_of_are_deleted():
    with serve(minutes=1 / 60) as client:
        visit = client.begin()
        client.put(visit, 'a.png', png())
        time.sleep(.6)
        assert client.ask('GET', f'/visits/{visit}')[0] == 200
        visits = client.app.state.visits
        visits.sweep()
        assert client.on_disk() == ['a.png']
        time.sleep(1.1)
        visits.sweep()
        assert client.on_disk() == []
        assert client.ask('GET', f'/visits/{visit}')[0] == 404
