/** What "copy as" copies. */
import { area, type Box } from "./boxes";
import { answersOf, isPresent, type Question } from "./questions";
import { apiKey } from "./service";

export const FORMATS: Record<string, (question: Question, threshold: number | null) => string> = {
  JSON: asJson,
  COCO: asCoco,
  curl: asCurl,
  Python: asPython,
};

/** The answer as the API gave it; a list where there are several. */
function asJson(question: Question): string {
  const answers = answersOf(question);
  return JSON.stringify(answers.length === 1 ? answers[0] : answers, null, 2);
}

/** A COCO dataset of one image: a category an expression, an annotation a box that counts as there. */
function asCoco(question: Question, threshold: number | null): string {
  const { picture, expressions } = question;
  const annotations = answersOf(question).flatMap(({ model, results }) =>
    results.flatMap((found, index) => {
      const [x1, y1, x2, y2] = found.box_xyxy as Box;
      const { score } = found;
      const annotation = { image_id: 1, category_id: index + 1, bbox: [x1, y1, x2 - x1, y2 - y1], iscrowd: 0 };
      return isPresent(found, threshold) ? [{ ...annotation, area: area([x1, y1, x2, y2]), score, model }] : [];
    }),
  );
  const dataset = {
    images: [{ id: 1, file_name: picture.name, width: picture.width, height: picture.height }],
    categories: expressions.map((name, index) => ({ id: index + 1, name })),
    annotations: annotations.map((annotation, index) => ({ id: index + 1, ...annotation })),
  };
  return JSON.stringify(dataset, null, 2);
}

function asCurl({ picture, expressions, models }: Question): string {
  const key = apiKey() ? ['-H "Authorization: Bearer $REFERENT_API_KEY"'] : [];
  return models
    .map(({ name }) =>
      [
        `curl ${new URL("v1/ground", location.href)}`,
        ...key,
        `-F ${shellQuoted(`image=@"${picture.name.replaceAll('"', '\\"')}"`)}`,
        ...expressions.map((expression) => `--form-string expression=${shellQuoted(expression)}`),
        `-F model=${name}`,
      ].join(" \\\n  "),
    )
    .join("\n");
}

function asPython({ picture, expressions, models }: Question): string {
  const literal = (value: unknown) => JSON.stringify(value); // JSON's strings are Python's too
  return `from referent import Client

with Client(${literal(new URL(".", location.href).href.replace(/\/$/, ""))}) as client:
    for model in ${literal(models.map(({ name }) => name))}:
        answer = client.ground(${literal(picture.name)}, ${literal(expressions)}, model=model)
        for result in answer.results:
            print(model, result.expression, result.box_xyxy, result.score, result.present)
`;
}

const shellQuoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;

/** Puts text on the clipboard, without its API too: that is for pages over https or from this machine alone. */
export async function copy(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
