/** What "copy as" copies. */
import { area, type Box } from "./boxes";
import { isPresent, referentsOf, responsesOf, type Question } from "./questions";
import { apiKey, type Referent } from "./service";

export const FORMATS: Record<string, (question: Question, threshold: number | null) => string> = {
  JSON: asJson,
  COCO: asCoco,
  curl: asCurl,
  Python: asPython,
};

/** The answer as the API gave it; a list where there are several. */
function asJson(question: Question): string {
  const responses = responsesOf(question);
  return JSON.stringify(responses.length === 1 ? responses[0] : responses, null, 2);
}

/** A COCO dataset of one image: a category an expression, an annotation a referent that counts as there. */
function asCoco(question: Question, threshold: number | null): string {
  const { picture, expressions } = question;
  const annotations = responsesOf(question).flatMap(({ model, results }) =>
    results.flatMap((answer, index) =>
      referentsOf(answer)
        .filter((referent) => isPresent(referent, threshold))
        .map((referent) => ({
          image_id: 1,
          category_id: index + 1,
          ...whereInCoco(referent),
          score: referent.score,
          model,
        })),
    ),
  );
  const keypoints = annotations.some((annotation) => "keypoints" in annotation) ? { keypoints: ["point"] } : {};
  const dataset = {
    images: [{ id: 1, file_name: picture.name, width: picture.width, height: picture.height }],
    categories: expressions.map((name, index) => ({ id: index + 1, name, ...keypoints })),
    annotations: annotations.map((annotation, index) => ({ id: index + 1, ...annotation })),
  };
  return JSON.stringify(dataset, null, 2);
}

/** A point is a keypoint that is seen (2); a box without size stands beside it, since COCO's readers want one. */
function whereInCoco({ box_xyxy, point_xy }: Referent) {
  const [x1, y1, x2, y2] = (box_xyxy ?? [...point_xy!, ...point_xy!]) as Box;
  const box = { bbox: [x1, y1, x2 - x1, y2 - y1], iscrowd: 0, area: area([x1, y1, x2, y2]) };
  return point_xy ? { ...box, keypoints: [...point_xy, 2], num_keypoints: 1 } : box;
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
            for referent in result.referents or [result]:
                where = referent.box_xyxy or referent.point_xy
                print(model, result.expression, where, referent.score, referent.present)
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
