// Starts the adapter as the platform does: a listener on descriptor 3, a readiness pipe on descriptor 4.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ADAPTER = fileURLToPath(new URL('../adapter.mjs', import.meta.url));
const INTERPRETER = process.env.DHOW_TEST_NODE || '/usr/bin/node';

export class Instance {
  static async start(files, { handler, env, unix = false, folder = '.', links = {} } = {}) {
    const it = new Instance();
    it.code = fs.mkdtempSync(path.join(os.tmpdir(), 'dhow-function-'));
    for (const [name, text] of Object.entries(files)) {
      fs.mkdirSync(path.dirname(path.join(it.code, name)), { recursive: true });
      fs.writeFileSync(path.join(it.code, name), text);
    }
    for (const [name, target] of Object.entries(links)) fs.symlinkSync(target, path.join(it.code, name));
    const listener = net.createServer();
    listener.listen(unix ? path.join(it.code, '.socket') : { port: 0, host: '127.0.0.1' });
    await once(listener, 'listening');
    it.address = unix ? { socketPath: listener.address() } : { host: '127.0.0.1', port: listener.address().port };
    it.process = spawn(INTERPRETER, [ADAPTER], {
      cwd: path.join(it.code, folder),
      env: { PORT: '8080', ...(handler ? { DHOW_HANDLER: handler } : {}), ...env },
      stdio: ['ignore', 'pipe', 'pipe', listener._handle.fd, 'pipe'],
    });
    it.ended = once(it.process, 'close').then(([code]) => code);
    it.stdout = it.stderr = '';
    it.process.stdout.on('data', (data) => (it.stdout += data));
    it.process.stderr.on('data', (data) => (it.stderr += data));
    it.ready = '';
    it.process.stdio[4].on('data', (data) => (it.ready += data));
    await once(it.process.stdio[4], 'close');
    // A path that is bound stays when the listener is let go without closing it.
    if (unix) fs.renameSync(it.address.socketPath, `${it.address.socketPath}.kept`);
    listener.close();
    if (unix) fs.renameSync(`${it.address.socketPath}.kept`, it.address.socketPath);
    return it;
  }

  async stop() {
    this.process.kill('SIGTERM');
    const code = await this.ended;
    fs.rmSync(this.code, { recursive: true });
    return code;
  }

  /** One exchange: the status, the headers in lower case, the body. */
  request(path = '/', { method = 'GET', headers = {}, body, agent = false } = {}) {
    return new Promise((resolve, reject) => {
      const req = http.request({ ...this.address, path, method, headers, agent }, async (res) => {
        const chunks = [];
        try {
          for await (const chunk of res) chunks.push(chunk);
          resolve({ status: res.statusCode, headers: res.headers, body: Buffer.concat(chunks) });
        } catch (error) {
          reject(error);
        }
      });
      req.on('error', reject);
      req.end(body);
    });
  }

  /** Waits until the function has printed this. */
  async prints(text) {
    while (!this.stdout.includes(text)) await once(this.process.stdout, 'data');
  }

  /** Waits until no new connection is accepted. */
  async refuses() {
    for (;;) {
      const socket = net.connect(this.address.socketPath ?? this.address);
      try {
        await once(socket, 'connect');
      } catch {
        return;
      }
      socket.destroy();
    }
  }
}
