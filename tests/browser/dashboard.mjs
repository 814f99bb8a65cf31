// Uses the dashboard of the drill's tier as a person does, in Chromium: logs in by the link, chats, looks the trace up,
// answers a question with the page's own buttons, and looks at what the page may not do.
//
// Owned here: what is seen in a browser. Not here: starting the stack (tests/run.sh), or what the gate and the bridge
// answer to requests that no browser makes (their own tests).
//
// SUPERVISOR   path of tier-supervisor
// SCREENSHOTS  directory for pictures: of the page as it was when something failed, and of each step with KEEP=1
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const supervisor = process.env.SUPERVISOR ?? '/usr/local/lib/assistant/bin/tier-supervisor';
const screenshots = process.env.SCREENSHOTS ?? mkdtempSync(join(tmpdir(), 'dashboard-screenshots-'));
const tier = 'tasks';
const secondsForATurn = 120;
// A page need not be loaded to the last picture; what has to be on it is waited for.
const ready = { waitUntil: 'domcontentloaded', timeout: 60_000 };
const there = { waitUntil: 'commit', timeout: 60_000 };
let site;
let page;
let step = 'begin';
let passed = 0;

function check(holds, what) {
  if (!holds) throw new Error(what);
}

function loginLink(name) {
  const link = execFileSync(supervisor, ['login', name], { encoding: 'utf8', timeout: 30_000 }).trim();
  check(/^http:\/\/[a-z0-9-]+\.localhost:\d+\/login\?ticket=\S{40,}$/.test(link), `no login link for ${name}: ${link}`);
  return new URL(link);
}

async function done(name) {
  passed += 1;
  console.log(`ok ${name}`);
  if (process.env.KEEP === '1') await picture(name);
}

async function picture(name) {
  mkdirSync(screenshots, { recursive: true });
  const file = join(screenshots, `${name.replaceAll(/[^a-z0-9]+/gi, '-')}.png`);
  await page.screenshot({ path: file }).catch((error) => console.error(`no picture: ${error.message}`));
  return file;
}

// What a page's own script gets to see of an address of its site.
function asked(path, method = 'GET') {
  return page.evaluate(
    async ([path, method]) => {
      const response = await fetch(path, { method });
      return { status: response.status, text: await response.text() };
    },
    [path, method],
  );
}

// Says something and waits for the end of the turn, which is its trace.
async function say(text, meanwhile = async () => {}) {
  const traces = page.locator('.chat-markdown', { hasText: /^Trace [0-9a-f]{32}$/ });
  const before = await traces.count();
  await page.locator('textarea').fill(text);
  await page.locator('textarea').press('Enter');
  await meanwhile();
  await traces.nth(before).waitFor({ timeout: secondsForATurn * 1000 });
  return (await traces.nth(before).innerText()).replace(/^Trace /, '').trim();
}

// The bubble before the last trace: the answer.
async function lastAnswer() {
  const bubbles = page.locator('.chat-markdown');
  return bubbles.nth((await bubbles.count()) - 2).innerText();
}

const foreign = [];
function watch(context) {
  const ours = (url) => {
    const { protocol, hostname } = new URL(url);
    return ['data:', 'blob:', 'about:'].includes(protocol) || /^(tasks|jaeger)\.localhost$/.test(hostname);
  };
  // What the page's policy stops never leaves the browser; everything else that is not ours is written down.
  context.on('requestfailed', (request) => {
    if (!ours(request.url()) && request.failure()?.errorText !== 'csp') foreign.push(request.url());
  });
  context.on('requestfinished', (request) => {
    if (!ours(request.url())) foreign.push(request.url());
  });
}

async function withoutLogin() {
  for (const path of ['/', '/agent/default', '/_app/logo.png', '/api/status', '/health']) {
    const response = await page.goto(`${site}${path}`, ready);
    check(response.status() === 401, `${path} answered ${response.status()} to nobody`);
    check((await page.content()).includes(`login ${tier}`), `${path} does not say how to log in`);
    check((await page.locator('script').count()) === 0, `${path} has a script before the login`);
  }
  const chat = await page.evaluate(
    (url) =>
      new Promise((resolve) => {
        const socket = new WebSocket(url, ['zeroclaw.v1']);
        socket.onopen = () => resolve('open');
        socket.onerror = () => resolve('refused');
      }),
    `${site.replace('http', 'ws')}/ws/chat?session_id=nobody&agent=default`,
  );
  check(chat === 'refused', 'a chat was opened without a login');
}

async function logIn(context) {
  const link = loginLink(tier);
  check(link.origin === site, `the link leads to ${link.origin}`);
  await page.goto(link.href, ready);
  await page.waitForURL(`${site}/agent/default`, there);
  await page.getByPlaceholder('Type a message').waitFor({ timeout: 60_000 });
  const cookies = await context.cookies(site);
  check(cookies.length > 0, 'there is no session');
  for (const cookie of cookies) {
    check(cookie.httpOnly && cookie.sameSite === 'Strict', `the cookie ${cookie.name} is not for the gate alone`);
  }
  // The ticket works once: who finds it afterwards is nobody.
  await context.clearCookies();
  await page.goto(link.href, ready);
  check((await page.content()).includes(`login ${tier}`), 'a used ticket does not say how to get another');
  const after = await page.goto(`${site}/agent/default`, ready);
  check(after.status() === 401, `a ticket worked twice: ${after.status()}`);
  await context.addCookies(cookies);
  await page.goto(`${site}/agent/default`, ready);
  await page.getByPlaceholder('Type a message').waitFor({ timeout: 60_000 });
}

async function chats() {
  const trace = await say('what are my tasks?');
  const answer = await lastAnswer();
  check(answer.includes('Water the plants'), `the answer is: ${answer}`);
  return trace;
}

// In Jaeger's page, behind a login of its own.
async function looksUp(context, trace) {
  const other = await context.newPage();
  try {
    const link = loginLink('jaeger');
    await other.goto(link.href, ready);
    await other.waitForURL((url) => url.origin === link.origin && url.pathname !== '/login', there);
    const deadline = Date.now() + 60_000;
    let services = [];
    while (Date.now() < deadline) {
      const found = await other.evaluate(async (path) => {
        const response = await fetch(path);
        return response.ok ? response.json() : null;
      }, `/api/traces/${trace}`);
      const [one] = found?.data ?? [];
      services = Object.values(one?.processes ?? {}).map((process) => process.serviceName);
      const root = one?.spans.find((span) => span.operationName === 'turn');
      const tag = (name) => root?.tags.find((tag) => tag.key === name)?.value;
      if (root && ['channel-bridge', 'secret-broker'].every((name) => services.includes(name))) {
        check(tag('channel') === 'dashboard' && tag('tier') === tier, `the turn is of ${tag('channel')} in ${tag('tier')}`);
        return;
      }
      await other.waitForTimeout(500);
    }
    throw new Error(`Jaeger has no whole trace ${trace}: ${services.join(', ') || 'nothing'}`);
  } finally {
    await other.close();
  }
}

async function answers(button, file, expected) {
  let shown = '';
  await say(`!tool file_write {"path":"${file}","content":"from the browser"}`, async () => {
    const banner = page.getByRole('alert').filter({ hasText: 'file_write' });
    await banner.waitFor({ timeout: secondsForATurn * 1000 });
    shown = await banner.innerText();
    if (process.env.KEEP === '1') await picture(`question ${button}`);
    await banner.getByRole('button', { name: button, exact: true }).click({ noWaitAfter: true });
    await banner.waitFor({ state: 'detached', timeout: 10_000 });
  });
  check(shown.includes(file) && shown.includes('from the browser'), `the question does not show all: ${shown}`);
  const answer = await lastAnswer();
  check(expected.test(answer), `after ${button} the answer is: ${answer}`);
}

// Answers are the agent's words: nothing in them leads away, or fetches.
async function hostileWords() {
  await say(
    '!say ![x](https://evil.example/x.png) [y](https://evil.example/y) https://evil.example/z www.evil.example <img src=//evil.example>',
  );
  const answer = await lastAnswer();
  check(answer.includes('evil'), `nothing was said: ${answer}`);
  const leads = await page.locator('.chat-markdown [href], .chat-markdown [src]').evaluateAll((all) =>
    all.map((one) => one.getAttribute('href') ?? one.getAttribute('src')),
  );
  check(!leads.some((lead) => lead.includes('evil')), `a link was made: ${leads}`);
}

async function survivesAReload() {
  const bubbles = await page.locator('.chat-markdown').count();
  await page.reload(ready);
  await page.getByText('what are my tasks?', { exact: true }).waitFor({ timeout: 60_000 });
  await page.getByText('Water the plants').first().waitFor({ timeout: 60_000 });
  check((await page.locator('.chat-markdown').count()) === bubbles, 'something is missing after a reload');
}

async function closedParts() {
  for (const [path, method] of [
    ['/api/config/list', 'GET'],
    ['/api/config/prop', 'PUT'],
    ['/api/cron', 'POST'],
    ['/api/plugins', 'GET'],
    ['/admin/reload', 'POST'],
  ]) {
    const { status, text } = await asked(path, method);
    check(status === 403 && JSON.parse(text).code === 'closed_here', `${method} ${path} answered ${status}: ${text}`);
  }
  const { status, text } = await asked('/api/status');
  check(status === 200 && JSON.parse(text).model, `the control: /api/status answered ${status}: ${text}`);
}

async function logOut(context) {
  await page.goto(`${site}/logout`, ready);
  await page.getByRole('button', { name: 'Log out' }).click({ noWaitAfter: true });
  await page.getByText('You are logged out here').waitFor({ timeout: 10_000 });
  check((await context.cookies(site)).length === 0, 'a cookie is left');
  const response = await page.goto(`${site}/agent/default`, ready);
  check(response.status() === 401, `after the logout it answered ${response.status()}`);
}

const profile = mkdtempSync(join(tmpdir(), 'dashboard-profile-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  headless: true,
  viewport: { width: 1280, height: 800 },
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    // Nothing but loopback has a name or a way.
    '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE *.localhost, EXCLUDE localhost, EXCLUDE 127.0.0.1',
  ],
});
try {
  watch(context);
  page = context.pages()[0] ?? (await context.newPage());
  site = loginLink(tier).origin;
  let trace;
  for (const [name, work] of [
    ['without a login there is only the login page', withoutLogin],
    ['the link logs in, once, and leads to the chat', () => logIn(context)],
    ['a question about tasks is answered', async () => (trace = await chats())],
    ['the trace in the conversation is in Jaeger', () => looksUp(context, trace)],
    ['a yes lets the agent do it', () => answers('Approve', 'from-the-browser.txt', /wrote|written|bytes/i)],
    ['a no does not', () => answers('Deny', 'never.txt', /denied|reject|not/i)],
    ['nothing the agent says leads away', hostileWords],
    ['a reload shows the conversation again', survivesAReload],
    ['settings and other parts are closed', closedParts],
    ['the logout ends it', () => logOut(context)],
    [
      'no request went to another site',
      async () => check(foreign.length === 0, `requests to elsewhere: ${foreign.join(' ')}`),
    ],
  ]) {
    step = name;
    await work();
    await done(name);
  }
  console.log(`${passed} passed`);
} catch (error) {
  const file = page ? await picture(`failed ${step}`) : 'none';
  console.error(`FAILED: ${step}: ${error.message}\npicture: ${file}`);
  process.exitCode = 1;
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
