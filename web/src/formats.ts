/** The answer in the formats of other tools, as files and for the clipboard. */
import { strToU8, zipSync } from "fflate";
import { area, type Box } from "./boxes";
import { png } from "./png";
import {
  isPresent,
  placesThere,
  referentsOf,
  responsesOf,
  truthsOf,
  type Question,
  type Result,
  type Truths,
} from "./questions";
import { apiKey, type Referent } from "./service";

/** A question with its answers as they are shown. */
export interface Answered {
  question: Question;
  results: Result[][];
  threshold: number | null;
  truths: Truths;
}

type Text = (answered: Answered) => string;

export const TEXTS: Record<string, Text> = { JSON: asJson, COCO: asCoco, curl: asCurl, Python: asPython };

const text = (format: Text, type: string) => async (answered: Answered) => new Blob([format(answered)], { type });

export const FILES: Record<string, { extension: string; content: (answered: Answered) => Promise<Blob> }> = {
  PNG: {
    extension: ".png",
    content: ({ question, results, truths }) => png(question, placesThere(results), truthsOf(question, truths)),
  },
  JSON: { extension: ".json", content: text(asJson, "application/json") },
  COCO: { extension: ".coco.json", content: text(asCoco, "application/json") },
  YOLO: { extension: ".yolo.zip", content: asYolo },
  CSV: { extension: ".csv", content: text(asCsv, "text/csv") },
};

/** The answer as the API gave it; a list where there are several. */
function asJson({ question }: Answered): string {
  const responses = responsesOf(question);
  return JSON.stringify(responses.length === 1 ? responses[0] : responses, null, 2);
}

/** Each referent that counts as found, with its model and the index of its expression. */
const foundIn = ({ question, threshold }: Answered) =>
  responsesOf(question).flatMap(({ model, results }) =>
    results.flatMap((answer, expression) =>
      referentsOf(answer)
        .filter((referent) => isPresent(referent, threshold))
        .map((referent) => ({ model, expression, referent })),
    ),
  );

/** A COCO dataset of one image: a category for each expression, an annotation for each referent that is found. A batch
 * writes points in the same way. */
function asCoco(answered: Answered): string {
  const { picture, expressions } = answered.question;
  const found = foundIn(answered);
  const pointed = new Set(found.flatMap(({ expression, referent }) => (referent.point_xy ? expression : [])));
  const dataset = {
    images: [{ id: 1, file_name: picture.name, width: picture.width, height: picture.height }],
    categories: expressions.map((name, index) => ({
      id: index + 1,
      name,
      ...(pointed.has(index) ? { keypoints: ["point"], skeleton: [] } : {}),
    })),
    annotations: found.map(({ model, expression, referent }, index) => ({
      id: index + 1,
      image_id: 1,
      category_id: expression + 1,
      ...whereInCoco(referent, pointed.size > 0),
      ...(referent.score === null ? {} : { score: referent.score }),
      model,
    })),
  };
  return JSON.stringify(dataset, null, 2);
}

/** A point is a visible keypoint (2), with a box without size, since COCO's readers need a box. If a file has points, its
 * boxes have a keypoint too, one that is not labelled (0). */
function whereInCoco({ box_xyxy, point_xy }: Referent, hasPoints: boolean) {
  const [x1, y1, x2, y2] = (box_xyxy ?? [...point_xy!, ...point_xy!]) as Box;
  const box = { bbox: [x1, y1, x2 - x1, y2 - y1], iscrowd: 0, area: area([x1, y1, x2, y2]) };
  if (!hasPoints) return box;
  return { ...box, keypoints: point_xy ? [...point_xy, 2] : [0, 0, 0], num_keypoints: point_xy ? 1 : 0 };
}

/** The picture, its labels and the names of the classes, as Ultralytics' tools read them: class, centre x, centre y,
 * width, height in shares of the picture; of points, a box without size and x, y, 2 (seen). */
async function asYolo(answered: Answered): Promise<Blob> {
  const { picture, expressions } = answered.question;
  const { width, height } = picture;
  const found = foundIn(answered);
  const hasPoints = found.some(({ referent }) => referent.point_xy);
  const lines = found.map(({ expression, referent: { box_xyxy, point_xy } }) => {
    const [x1, y1, x2, y2] = (box_xyxy ?? [...point_xy!, ...point_xy!]) as Box;
    const box = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height];
    const [x, y] = point_xy ?? [0, 0];
    const point = hasPoints ? [x! / width, y! / height, point_xy ? 2 : 0] : [];
    return [expression, ...[...box, ...point].map((share) => +share.toFixed(6))].join(" ");
  });
  const names = expressions.map((expression, index) => `  ${index}: ${JSON.stringify(expression)}`); // YAML's strings too
  const shape = hasPoints ? ["kpt_shape: [1, 3]"] : [];
  const yaml = ["path: .", "train: images", "val: images", ...shape, "names:", ...names, ""].join("\n");
  const stem = picture.name.replace(/\.\w+$/, "");
  const files = {
    "data.yaml": strToU8(yaml),
    [`labels/${stem}.txt`]: strToU8(lines.map((line) => `${line}\n`).join("")),
    [`images/${picture.name}`]: new Uint8Array(await picture.blob.arrayBuffer()),
  };
  return new Blob([zipSync(files, { level: 0 })], { type: "application/zip" });
}

const COLUMNS = ["image", "width", "height", "model", "expression", "referent", "present", "score", "x1", "y1", "x2", "y2", "x", "y", "error"]; // prettier-ignore

/** A row for each referent, and one without a place for an expression that has none; pixels. A batch writes the same. */
function asCsv({ question, threshold }: Answered): string {
  const { name, width, height } = question.picture;
  const rows = responsesOf(question).flatMap(({ model, results }) =>
    results.flatMap((answer) => {
      const found = referentsOf(answer).filter((referent) => isPresent(referent, threshold));
      const start = [name, width, height, model, answer.expression];
      if (!found.length) return [[...start, "", "no", answer.score ?? ""]];
      return found.map(({ score, present, box_xyxy, point_xy }, index) => [
        ...start,
        index + 1,
        present === null && score === null ? "" : "yes",
        score ?? "",
        ...(box_xyxy ?? ["", "", "", ""]),
        ...(point_xy ?? ["", ""]),
      ]);
    }),
  );
  const cell = (value: string | number) =>
    /[",\r\n]/.test(`${value}`) ? `"${`${value}`.replaceAll('"', '""')}"` : value;
  const line = (cells: (string | number)[]) => COLUMNS.map((_, index) => cell(cells[index] ?? "")).join(",") + "\r\n";
  return [COLUMNS, ...rows].map(line).join("");
}

function asCurl({ question: { picture, expressions, models, options } }: Answered): string {
  const key = apiKey() ? ['-H "Authorization: Bearer $REFERENT_API_KEY"'] : [];
  const limit = options.maxInstances === null ? [] : [`-F max_instances=${options.maxInstances}`];
  return models
    .map(({ name }) =>
      [
        `curl ${new URL("v1/ground", location.href)}`,
        ...key,
        `-F ${shellQuoted(`image=@"${picture.name.replaceAll('"', '\\"')}"`)}`,
        ...expressions.map((expression) => `--form-string expression=${shellQuoted(expression)}`),
        `-F model=${name}`,
        ...limit,
      ].join(" \\\n  "),
    )
    .join("\n");
}

function asPython({ question: { picture, expressions, models, options } }: Answered): string {
  const literal = (value: unknown) => JSON.stringify(value); // JSON's strings are Python's too
  const limit = options.maxInstances === null ? "" : `, max_instances=${options.maxInstances}`;
  return `from referent import Client

with Client(${literal(new URL(".", location.href).href.replace(/\/$/, ""))}) as client:
    for model in ${literal(models.map(({ name }) => name))}:
        answer = client.ground(${literal(picture.name)}, ${literal(expressions)}, model=model${limit})
        for result in answer.results:
            for referent in result.referents or [result]:
                where = referent.box_xyxy or referent.point_xy
                print(model, result.expression, where, referent.score, referent.present)
`;
}

const shellQuoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;

/** Puts text on the clipboard, also without its API, which only pages over https or from this machine have. */
export async function copy(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
