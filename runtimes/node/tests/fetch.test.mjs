// Functions that answer requests: what they see, what they may return, how they fail, how they end.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import { test } from 'node:test';
import { Instance } from './instance.mjs';

async function withInstance(files, options, body) {
  const instance = await Instance.start(files, options);
  try {
    assert.equal(instance.ready, '1', instance.stderr);
    await body(instance);
  } finally {
    await instance.stop();
  }
}

const ECHO = `export default {
  async fetch(request) {
    const url = new URL(request.url);
    return Response.json({
      method: request.method, path: url.pathname, x: url.searchParams.getAll('x'), host: url.host,
      twice: request.headers.get('x-twice'), body: await request.text(),
    }, { status: 201, headers: { 'x-made': 'yes' } });
  },
};`;

test('fetch sees the request', async () => {
  await withInstance({ 'index.mjs': ECHO }, {}, async (instance) => {
    const headers = { host: 'fn.example', 'x-twice': ['one', 'two'] };
    const got = await instance.request('/a%20b?x=1&x=2', { method: 'POST', headers, body: 'hé' });
    assert.equal(got.status, 201);
    assert.equal(got.headers['x-made'], 'yes');
    const want = { method: 'POST', path: '/a%20b', x: ['1', '2'], host: 'fn.example', twice: 'one, two', body: 'hé' };
    assert.deepEqual(JSON.parse(got.body), want);
    assert.equal((await instance.request('/', { method: 'HEAD' })).body.length, 0);
  });
});

test('every kind of function', async () => {
  const rows = [
    [{ 'index.mjs': "export default { fetch: () => new Response('here') }" }],
    [{ 'index.mjs': "export default (req, res) => { res.setHeader('x', 'y'); res.end('here') }" }],
    [{ 'index.mjs': "export default async (request) => new Response('here')" }],
    [{ 'index.js': "module.exports = { fetch: () => new Response('here') }" }],
    [{ 'index.js': "module.exports = (req, res) => res.end('here')" }],
    [{ 'index.js': "exports.__esModule = true; exports.default = (req, res) => res.end('here')" }],
    [{ 'index.js': "export default { fetch: () => new Response('here') }", 'package.json': '{"type": "module"}' }],
    [{ 'lib/app.mjs': "export default { fetch: () => new Response('here') }", 'package.json': '{"main": "./lib/app.mjs"}' }],
    [{ 'lib/index.js': "module.exports = (req, res) => res.end('here')", 'package.json': '{"main": "lib"}' }],
    [{ 'api.mjs': "export const run = (req, res) => res.end('here')" }, { handler: 'api.run' }],
    [{ 'api.js': "exports.run = { fetch: () => new Response('here') }" }, { handler: 'api.run' }],
    [{ 'index.mjs': "export const named = () => new Response('here')" }, { handler: 'named' }],
    [{ 'index.mjs': "export default { fetch: () => new Response('here') }" }, { unix: true }],
    [
      {
        'index.mjs': "import { here } from 'esm-dep'; export default { fetch: () => new Response(here) }",
        'node_modules/esm-dep/package.json': '{"type": "module", "exports": "./x.js"}',
        'node_modules/esm-dep/x.js': "export const here = 'here'",
      },
    ],
  ];
  for (const [files, options] of rows) {
    await withInstance(files, options, async (instance) => {
      const got = await instance.request();
      assert.deepEqual([got.status, got.body.toString()], [200, 'here'], JSON.stringify(files) + instance.stderr);
    });
  }
});

test('dependencies are found through the link that the build makes, from either module system', async () => {
  const files = {
    'app/index.mjs': "import { a } from 'a'; export default { fetch: () => new Response(a) }",
    'app/old.js': "exports.run = (req, res) => res.end(require('a').a)",
    'deps/node_modules/a/index.js': "exports.a = require('b')",
    'deps/node_modules/b/index.js': "module.exports = 'here'",
  };
  for (const handler of [undefined, 'old.run']) {
    const options = { handler, folder: 'app', links: { 'app/node_modules': '../deps/node_modules' } };
    await withInstance(files, options, async (instance) => {
      assert.equal((await instance.request()).body.toString(), 'here');
    });
  }
});

test('streams both ways', async () => {
  const code = `export default { fetch(request) {
    return new Response(request.body.pipeThrough(new TransformStream({
      transform(chunk, controller) { controller.enqueue(new TextEncoder().encode(new TextDecoder().decode(chunk).toUpperCase())) },
    })), { headers: [['set-cookie', 'a=1'], ['set-cookie', 'b=2']] });
  } }`;
  await withInstance({ 'index.mjs': code }, {}, async (instance) => {
    const req = http.request({ ...instance.address, method: 'POST', agent: false });
    req.write('first');
    const res = await new Promise((resolve) => req.on('response', resolve));
    assert.deepEqual(res.headers['set-cookie'], ['a=1', 'b=2']);
    const chunks = res[Symbol.asyncIterator]();
    assert.equal((await chunks.next()).value.toString(), 'FIRST');
    req.end('second');
    assert.equal((await chunks.next()).value.toString(), 'SECOND');
    assert.equal((await chunks.next()).done, true);
  });
});

test('failures answer 500, keep the secret and tell the log', async () => {
  const code = `
    export default { async fetch(request) {
      const path = new URL(request.url).pathname;
      if (path === '/throw') throw new Error('secret');
      if (path === '/nothing') return undefined;
      if (path === '/object') return { a: 1 };
      if (path === '/forgotten') { Promise.reject(new Error('forgotten')); return new Promise(() => {}) }
      return new Response('fine');
    } }
    export const old = (req, res) => {
      if (req.url === '/later') setImmediate(() => { throw new Error('later') });
      else if (req.url === '/async') return Promise.reject(new Error('async'));
      else res.end('fine');
    }`;
  await withInstance({ 'index.mjs': code }, {}, async (instance) => {
    for (const path of ['/throw', '/nothing', '/object', '/forgotten']) {
      const got = await instance.request(path);
      assert.deepEqual([got.status, got.body.toString()], [500, 'internal error\n'], path);
    }
    assert.equal((await instance.request('/')).status, 200);
    for (const text of ['Error: secret', 'Error: forgotten', 'fetch() returned undefined', 'returned a Object; return a Response']) {
      assert.ok(instance.stderr.includes(text), `${text} in ${instance.stderr}`);
    }
    assert.ok(!instance.stderr.includes('adapter.mjs'), instance.stderr);
  });
  await withInstance({ 'index.mjs': code }, { handler: 'index.old' }, async (instance) => {
    assert.equal((await instance.request('/async')).status, 500);
    assert.equal((await instance.request('/')).status, 200);
    assert.equal((await instance.request('/later')).status, 500);
    assert.equal(await instance.ended, 1);
  });
});

test('SIGTERM finishes what is in flight', async () => {
  const code = `
    import { readFile } from 'node:fs/promises';
    export default { async fetch() { console.log('working'); return new Response(await readFile('gate')) } }`;
  const instance = await Instance.start({ 'index.mjs': code });
  execFileSync('mkfifo', [`${instance.code}/gate`]);
  const agent = new http.Agent({ keepAlive: true });
  const answer = instance.request('/', { agent });
  await instance.prints('working');
  instance.process.kill('SIGTERM');
  await instance.refuses();
  fs.writeFileSync(`${instance.code}/gate`, 'finished');
  const got = await answer;
  assert.equal(got.body.toString(), 'finished');
  assert.equal(got.headers.connection, 'close');
  assert.equal(await instance.ended, 0);
  fs.rmSync(instance.code, { recursive: true });
});

test('SIGTERM when idle', async () => {
  const instance = await Instance.start({ 'index.mjs': "export default () => new Response('x')" });
  const agent = new http.Agent({ keepAlive: true });
  assert.equal((await instance.request('/', { agent })).status, 200);
  assert.equal(await instance.stop(), 0);
});

test('a function that does not load says what is wrong and what to do', async () => {
  const rows = [
    [{}, undefined, /there is no index.mjs or index.js in .*; add one, or set main in package.json/],
    [{ 'package.json': '{"main": "gone.js"}' }, undefined, /names 'gone.js' as main, which is not there/],
    [{ 'package.json': '{' }, undefined, /package.json is not valid JSON/],
    [{ 'index.mjs': '' }, 'gone.run', /there is no gone.mjs or gone.js in .*; add it or set spec.handler/],
    [{ 'index.mjs': 'export const x = 1' }, undefined, /index.mjs has no default export; export an object with fetch/],
    [{ 'index.mjs': 'export default 3' }, undefined, /the default export of index.mjs is neither/],
    [{ 'index.mjs': 'export default 3' }, 'index.run', /index.mjs has no export 'run'/],
    [{ 'index.mjs': 'export const onEvent = 3' }, undefined, /'onEvent' in index.mjs is a number; make it a function/],
    [{ 'index.mjs': "import 'left-pad-not-here'" }, undefined, /needs 'left-pad-not-here', which is not installed; add it to/],
    [{ 'index.js': "require('left-pad-not-here')" }, undefined, /needs 'left-pad-not-here', which is not installed/],
    [{ 'index.mjs': "import './gone.mjs'" }, undefined, /gone.mjs', which is not there; add it/],
    [{ 'index.mjs': 'export default {\n fetch( { }\n}' }, undefined, /the code is not valid JavaScript/],
    [{ 'index.js': 'const = 1' }, undefined, /the code is not valid JavaScript/],
    [{ 'index.mjs': "throw new RangeError('boom')" }, undefined, /failed while it was loaded: RangeError: boom/],
    [{ 'index.mjs': 'process.exit(0)' }, undefined, /exited with 0 while it was loaded/],
    [{ 'index.mjs': 'await new Promise(() => {})' }, undefined, /waits for something that never comes/],
  ];
  for (const [files, handler, want] of rows) {
    const instance = await Instance.start(files, { handler });
    assert.equal(instance.ready, '');
    assert.equal(await instance.ended, 1, String(want));
    const last = instance.stderr.trimEnd().split('\n').at(-1);
    assert.match(last, /^dhow: /);
    assert.match(last, want);
    assert.ok(!instance.stderr.includes('adapter.mjs'), instance.stderr);
    fs.rmSync(instance.code, { recursive: true });
  }
});
