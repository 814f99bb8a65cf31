// Checks the dashboards of deploy/grafana against Grafana's own types: each is written out as a typed constant and given
// to the TypeScript compiler, which knows every field of a dashboard and of the options of each kind of panel, and no
// others. Then spoiled copies are: a check that takes them shows nothing.
//
// Usage: npm ci && node check.mjs, in this directory or in a copy of it with DASHBOARDS set.
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const here = dirname(fileURLToPath(import.meta.url));
const dashboards = process.env.DASHBOARDS ?? join(here, '../../deploy/grafana/dashboards');

// The types of options and of a field's own settings, by kind of panel.
const kinds = {
  bargauge: { module: 'bargauge/panelcfg/x/BarGaugePanelCfg_types.gen', field: false },
  stat: { module: 'stat/panelcfg/x/StatPanelCfg_types.gen', field: false },
  'state-timeline': { module: 'statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen', field: true },
  table: { module: 'table/panelcfg/x/TablePanelCfg_types.gen', field: true },
  timeseries: { module: 'timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen', field: true },
};
const name = (kind) => kind.replace('-', '_');

// In JSON an enum is its value.
const prelude = `
import type { Dashboard, FieldConfigSource, Panel } from '@grafana/schema';
${Object.entries(kinds)
  .map(([kind, { module }]) => `import type * as ${name(kind)} from '@grafana/schema/dist/esm/raw/composable/${module}';`)
  .join('\n')}
type Plain<T> = unknown extends T ? unknown
  : T extends string ? \`\${T}\`
  : T extends number ? number
  : T extends boolean | null | undefined ? T
  : { [K in keyof T]: Plain<T[K]> };
interface Threshold { color: string; value: number | null }
// Grafana reads null, JSON's only way to say minus infinity, and writes it itself; its type says number.
type Fields<F> = Omit<Plain<FieldConfigSource>, 'defaults'> & {
  defaults: Omit<Plain<FieldConfigSource['defaults']>, 'custom' | 'thresholds'> & {
    custom?: F;
    thresholds?: { mode: 'absolute' | 'percentage'; steps: Threshold[] };
  };
};
type Typed<K extends string, O, F> = Omit<Plain<Panel>, 'type' | 'options' | 'fieldConfig' | 'targets'> & {
  type: K; options: Plain<O>; fieldConfig: Fields<F>; targets: Array<Prometheus | Jaeger>;
};
interface Source<T extends string> { type: T; uid: T }
// The queries of these two data sources are not among the published types: the fields we use, as their editors write them.
interface Prometheus {
  refId: string; datasource: Source<'prometheus'>; expr: string;
  legendFormat?: string; instant?: boolean; range?: boolean; format?: 'table' | 'time_series';
}
interface Jaeger {
  refId: string; datasource: Source<'jaeger'>; queryType: 'search';
  service: string; operation?: string; tags?: string; limit: number;
}
type Ours = ${Object.entries(kinds)
  .map(([kind, { field }]) => `Typed<'${kind}', ${name(kind)}.Options, ${field ? `Plain<${name(kind)}.FieldConfig>` : 'never'}>`)
  .join(' | ')};
type Board = Omit<Plain<Dashboard>, 'panels' | 'refresh'> & { panels: Ours[]; refresh: string };
`;

/** What the compiler says against a dashboard. */
function problems(directory, texts) {
  const files = texts.map((text, index) => {
    const file = join(directory, `board${index}.ts`);
    writeFileSync(file, `${prelude}\nexport const board: Board = ${text};\n`);
    return file;
  });
  const program = ts.createProgram(files, {
    strict: true, noEmit: true, exactOptionalPropertyTypes: false, skipLibCheck: true, types: [],
    module: ts.ModuleKind.NodeNext, moduleResolution: ts.ModuleResolutionKind.NodeNext, target: ts.ScriptTarget.ES2022,
  });
  const found = files.map(() => []);
  for (const diagnostic of ts.getPreEmitDiagnostics(program)) {
    const index = files.indexOf(diagnostic.file?.fileName ?? '');
    const text = ts.flattenDiagnosticMessageText(diagnostic.messageText, '\n  ');
    if (index < 0) {
      throw new Error(`the types themselves cannot be used: ${text}`);
    }
    const { line } = diagnostic.file.getLineAndCharacterOfPosition(diagnostic.start);
    found[index].push(`line ${line - prelude.split('\n').length + 1}: ${text}`);
  }
  return found;
}

const texts = readdirSync(dashboards).filter((file) => file.endsWith('.json')).sort()
  .map((file) => ({ file, text: readFileSync(join(dashboards, file), 'utf8').trim() }));
const spoiled = [
  ['a field nobody knows', (board) => { board.panels[0].colour = 'red'; }],
  ['an option of another kind of panel', (board) => { board.panels[0].options.cellHeight = 'sm'; }],
  ['a value that is not one of the enum', (board) => { board.panels[0].options.colorMode = 'loud'; }],
  ['a kind of panel that is not ours', (board) => { board.panels[0].type = 'graph'; }],
  ['a number for a text', (board) => { board.title = 7; }],
].map(([why, spoil]) => {
  const board = JSON.parse(texts[0].text);
  spoil(board);
  return { why, text: JSON.stringify(board) };
});

let failed = texts.length === 3 ? 0 : 1;
if (failed) {
  console.log(`FAILED: ${texts.length} dashboards in ${dashboards}, and there should be 3`);
}
// Beside node_modules, so that imports find it.
const work = mkdtempSync(join(here, '.check-'));
try {
  const found = problems(work, [...texts, ...spoiled].map(({ text }) => text));
  texts.forEach(({ file }, index) => {
    console.log(`${found[index].length === 0 ? 'ok' : 'FAILED'}: ${file} fits Grafana's types`);
    found[index].forEach((problem) => console.log(`  ${problem}`));
    failed += found[index].length;
  });
  spoiled.forEach(({ why }, index) => {
    const refused = found[texts.length + index].length > 0;
    console.log(`${refused ? 'ok' : 'FAILED'}: refused: ${why}`);
    failed += refused ? 0 : 1;
  });
} finally {
  rmSync(work, { recursive: true });
}
process.exit(failed === 0 ? 0 : 1);
