// `onEvent(event)`: CloudEvents in both HTTP modes.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Instance } from './instance.mjs';

const BINARY = { 'ce-specversion': '1.0', 'ce-id': '1', 'ce-source': '/s', 'ce-type': 't' };
const STRUCTURED = { specversion: '1.0', id: '1', source: '/s', type: 't' };
const JSON_EVENT = 'application/cloudevents+json';
const binary = (headers, body = '') => ({ headers: { ...BINARY, ...headers }, body });
const structured = (members) => ({ headers: { 'content-type': JSON_EVENT }, body: JSON.stringify({ ...STRUCTURED, ...members }) });

async function withInstance(code, options, body) {
  const instance = await Instance.start({ 'index.mjs': code }, options);
  try {
    assert.equal(instance.ready, '1', instance.stderr);
    await body(instance);
  } finally {
    await instance.stop();
  }
}

test('both modes', async () => {
  const code = `export function onEvent({ data, ...rest }) {
    if (Buffer.isBuffer(data)) data = { bytes: data.toString('hex') };
    return { type: 'seen', data: { ...rest, data } };
  }`;
  const rows = [
    [binary({}), {}],
    [binary({ 'content-type': 'application/json' }, '{"a": 1}'), { datacontenttype: 'application/json', data: { a: 1 } }],
    [binary({ 'content-type': 'text/plain' }, 'hi'), { datacontenttype: 'text/plain', data: 'hi' }],
    [binary({ 'content-type': 'image/png' }, '\0'), { datacontenttype: 'image/png', data: { bytes: '00' } }],
    [
      binary({ 'ce-subject': 'gr%C3%BC%20n', 'ce-time': '2026-01-02T03:04:05Z', 'ce-partitionkey': 'k' }),
      { subject: 'grü n', time: '2026-01-02T03:04:05Z', partitionkey: 'k' },
    ],
    [structured({}), {}],
    [structured({ data: { a: 1 } }), { data: { a: 1 } }],
    [structured({ data: 'hi', datacontenttype: 'text/plain', n: 3 }), { datacontenttype: 'text/plain', data: 'hi', n: 3 }],
    [structured({ data_base64: 'AP8=', datacontenttype: 'image/png' }), { datacontenttype: 'image/png', data: { bytes: '00ff' } }],
  ];
  await withInstance(code, { env: { K_SERVICE: 'shop' } }, async (instance) => {
    for (const [request, want] of rows) {
      const got = await instance.request('/', { method: 'POST', ...request });
      assert.equal(got.status, 200, got.body.toString());
      assert.deepEqual(JSON.parse(got.body), { ...STRUCTURED, ...want });
      assert.deepEqual([got.headers['ce-specversion'], got.headers['ce-type']], ['1.0', 'seen']);
      assert.equal(got.headers['ce-source'], '/functions/shop');
      assert.ok(got.headers['ce-id'] && got.headers['ce-time']);
    }
  });
});

test('malformed', async () => {
  const { 'ce-id': _, ...noId } = BINARY;
  const rows = [
    [{ headers: {} }, 'ce-specversion is missing'],
    [binary({ 'ce-specversion': '0.3' }), "specversion '0.3' is not supported"],
    [{ headers: noId }, 'id is missing'],
    [binary({ 'ce-source': '' }), 'source is not a non-empty string'],
    [binary({ 'ce-time': 'yesterday' }), 'is not an RFC 3339 time'],
    [binary({ 'content-type': 'application/json' }, '{'), 'the data is not application/json'],
    [binary({ 'content-type': 'text/plain' }, Buffer.from([0xff])), 'the data is not text/plain'],
    [{ headers: { 'content-type': JSON_EVENT }, body: '{' }, 'the body is not JSON'],
    [{ headers: { 'content-type': JSON_EVENT }, body: '[]' }, 'the body is not a JSON object'],
    [structured({ type: 3 }), 'type is not a non-empty string'],
    [structured({ data: 1, data_base64: '' }), 'both data'],
    [structured({ data_base64: '*' }), 'is not base64'],
    [structured({ 'Not-ok': 1 }), "'Not-ok'"],
    [{ headers: { 'content-type': 'application/cloudevents-batch+json' }, body: '[]' }, 'a batch of events'],
    [{ headers: { 'content-type': 'application/cloudevents+avro' } }, 'application/cloudevents+avro is not supported'],
  ];
  await withInstance('export function onEvent() {}', {}, async (instance) => {
    for (const [request, want] of rows) {
      const got = await instance.request('/', { method: 'POST', ...request });
      assert.equal(got.status, 400, want);
      assert.ok(got.body.toString().startsWith('not a CloudEvent: ') && got.body.includes(want), `${got.body} has ${want}`);
    }
    assert.equal((await instance.request('/', { method: 'POST', ...binary({}) })).status, 204);
    const large = await instance.request('/', { method: 'POST', ...binary({ 'content-length': 99999999999 }) });
    assert.equal(large.status, 413);
  });
});

test('answers', async () => {
  const code = 'export default { async onEvent(event) { return eval(`(${event.data})`) } }';
  const rows = [
    ['undefined', 204, undefined, '', {}],
    ["{ type: 'x', id: '5', source: 'a b', key: 'ü', data: 'hi' }", 200, 'text/plain; charset=utf-8', 'hi',
      { 'ce-id': '5', 'ce-source': 'a%20b', 'ce-key': '%C3%BC' }],
    ["{ type: 'x', data: Buffer.from('1'), flag: true }", 200, 'application/octet-stream', '1', { 'ce-flag': 'true' }],
    ["{ type: 'x', data: [1] }", 200, 'application/json', '[1]', {}],
    ["{ type: 'x', data: 'a', datacontenttype: 'application/json' }", 200, 'application/json', '"a"', {}],
    ['{ data: 1 }', 500, 'text/plain; charset=utf-8', 'internal error\n', {}],
    ["'text'", 500, 'text/plain; charset=utf-8', 'internal error\n', {}],
    ["{ type: 'x', 'Bad-Name': 1 }", 500, 'text/plain; charset=utf-8', 'internal error\n', {}],
  ]; // prettier-ignore
  await withInstance(code, {}, async (instance) => {
    for (const [text, status, type, body, fields] of rows) {
      const got = await instance.request('/', { method: 'POST', ...binary({ 'content-type': 'text/plain' }, text) });
      assert.deepEqual([got.status, got.headers['content-type'], got.body.toString()], [status, type, body], text);
      for (const [name, value] of Object.entries(fields)) assert.equal(got.headers[name], value);
    }
  });
});

test('beside fetch', async () => {
  const code = "export default { fetch: () => new Response('request'), onEvent: () => ({ type: 'event' }) }";
  await withInstance(code, {}, async (instance) => {
    const type = async (request) => (await instance.request('/', { method: 'POST', ...request })).headers['ce-type'];
    assert.equal(await type({}), undefined);
    assert.equal(await type(binary({})), 'event');
    assert.equal(await type(structured({})), 'event');
  });
});
