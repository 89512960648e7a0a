// node check.mjs FOLDER_WITH_node_modules < {"resources": [...], "dockerfiles": {path: text}}
// > {"resources": [[message, ...] or null where no published model is known, ...], "dockerfiles": {path: [message, ...]}}
import { createRequire } from "module";
import { existsSync, readFileSync } from "fs";
import { join } from "path";
import { pathToFileURL } from "url";

const home = process.argv[2], load = createRequire(join(home, "x.js"));
const packages = { "external-secrets.io": "external-secrets", "generators.external-secrets.io": "external-secrets", "karpenter.sh": "karpenter", "karpenter.k8s.aws": "karpenter", "monitoring.coreos.com": "prometheus-operator" };
const input = JSON.parse(readFileSync(0, "utf8")), resources = input.resources || [];
const modelOf = (d) => { const [group, version] = d.apiVersion.split("/"); return packages[group] && join(home, "node_modules/@kubernetes-models", packages[group], group, version, `${d.kind}.js`); };

// values: the validator that is published with each model
async function values(doc) {
  const file = modelOf(doc);
  if (!file) return null;
  if (!existsSync(file)) return [`${doc.apiVersion} ${doc.kind}: no published model`];
  try { new (await import(pathToFileURL(file)))[doc.kind](doc).validate(); return []; } catch (e) { return [e.message]; }
}

// names: validators let unknown fields pass, the published types don't: each resource becomes a literal of its type
function names(docs) {
  const ts = load("typescript"), virtual = join(home, "check.ts"), found = docs.map(() => []);
  const lines = docs.map((d, i) => { const file = modelOf(d); return file && existsSync(file) ? `import type { I${d.kind} as T${i} } from ${JSON.stringify(file.replace(/\.js$/, ""))}; export const v${i}: T${i} = ${JSON.stringify(d)};` : ""; });
  const options = { noEmit: true, strict: true, skipLibCheck: true, target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler, types: [] };
  const host = ts.createCompilerHost(options), source = ts.createSourceFile(virtual, lines.join("\n"), options.target), original = { ...host };
  host.getSourceFile = (f, ...rest) => (f === virtual ? source : original.getSourceFile(f, ...rest));
  host.fileExists = (f) => f === virtual || original.fileExists(f);
  const program = ts.createProgram([virtual], options, host);
  for (const d of [...program.getSyntacticDiagnostics(source), ...program.getSemanticDiagnostics(source)]) found[source.getLineAndCharacterOfPosition(d.start).line].push(ts.flattenDiagnosticMessageText(d.messageText, " ").slice(0, 400));
  return found;
}

const typed = resources.length ? names(resources) : [], output = { resources: [], dockerfiles: {} };
for (const [i, d] of resources.entries()) { const v = await values(d); output.resources.push(v && [...v, ...typed[i]]); }
for (const [path, text] of Object.entries(input.dockerfiles || {})) output.dockerfiles[path] = load("dockerfile-utils").validate(text, {}).map((x) => `line ${x.range.start.line + 1}: ${x.message}`);
console.log(JSON.stringify(output));
