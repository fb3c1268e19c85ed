// `--port`: the adapter opens its own port, once the function is loaded and not before.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const ADAPTER = fileURLToPath(new URL('../adapter.mjs', import.meta.url));
const INTERPRETER = process.env.DHOW_TEST_NODE || '/usr/bin/node';

/** The adapter as an image's entrypoint starts it. */
class Instance {
  constructor(code, port) {
    this.port = port;
    this.code = fs.mkdtempSync(path.join(os.tmpdir(), 'dhow-function-'));
    fs.writeFileSync(path.join(this.code, 'index.mjs'), code);
    this.process = spawn(INTERPRETER, [ADAPTER, '--port'], {
      cwd: this.code,
      env: { PORT: String(port) },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    this.stdout = this.stderr = '';
    this.process.stdout.on('data', (data) => (this.stdout += data));
    this.process.stderr.on('data', (data) => (this.stderr += data));
    this.ended = once(this.process, 'close').then(([code]) => code);
  }

  async prints(text) {
    while (!this.stdout.includes(text)) await once(this.process.stdout, 'data');
  }

  async accepts() {
    while (this.process.exitCode === null) {
      if (await connects(this.port)) return true;
      await pause(5);
    }
    return false;
  }

  async get() {
    const response = await fetch(`http://127.0.0.1:${this.port}/`);
    return [response.status, await response.text()];
  }
}

async function connects(port) {
  const socket = net.connect(port, '127.0.0.1');
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

/** A port that was free a moment ago. */
async function freePort() {
  const listener = net.createServer().listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const { port } = listener.address();
  listener.close();
  await once(listener, 'close');
  return port;
}

test('accepts once the function is loaded', async () => {
  const code = `
    import { once } from 'node:events';
    console.log('loading');
    await once(process.stdin, 'data');
    export default { fetch: () => Response.json({ argv: process.argv.length }) };`;
  const instance = new Instance(code, await freePort());
  await instance.prints('loading');
  assert.equal(await connects(instance.port), false);
  instance.process.stdin.end('go');
  assert.equal(await instance.accepts(), true);
  assert.deepEqual(await instance.get(), [200, '{"argv":2}']);
  instance.process.kill('SIGTERM');
  assert.equal(await instance.ended, 0);
  assert.equal(instance.stderr, '');
});

test('the end waits for requests in flight', async () => {
  const code = `
    import { once } from 'node:events';
    export default { async fetch() {
      console.log('asked');
      await once(process.stdin, 'data');
      return new Response('done');
    } };`;
  const instance = new Instance(code, await freePort());
  assert.equal(await instance.accepts(), true);
  const answer = instance.get();
  await instance.prints('asked');
  instance.process.kill('SIGTERM');
  while (await connects(instance.port));
  instance.process.stdin.end('go');
  assert.deepEqual(await answer, [200, 'done']);
  assert.equal(await instance.ended, 0);
});

test('what cannot be served ends', async () => {
  const taken = net.createServer().listen(0);
  await once(taken, 'listening');
  const good = 'export default { fetch: () => new Response() };';
  for (const [code, port, want] of [
    ['export const nothing = 1;', await freePort(), 'index.mjs has no default export'],
    [good, taken.address().port, 'cannot listen on PORT='],
    [good, 'http', 'cannot listen on PORT=http'],
    [good, '70000', 'cannot listen on PORT=70000'],
  ]) {
    const instance = new Instance(code, port);
    assert.equal(await instance.ended, 1, want);
    assert.ok(instance.stderr.includes(want), instance.stderr);
  }
  taken.close();
});
