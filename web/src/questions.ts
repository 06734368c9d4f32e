/** A question, and what became of it: the state that the page shows. */
import { iou, type Box } from "./boxes";
import type { Picture } from "./pictures";
import type { Answer, Failure, Found, Model } from "./service";

export interface Question {
  id: number;
  picture: Picture;
  expressions: string[];
  models: Model[];
  outcomes: Record<string, Outcome>; // by the model's name; none yet while it is being answered
}

export type Outcome = { answer: Answer } | { failure: Failure };

/** One model's result for one expression. */
export interface Result {
  model: Model;
  found: Found;
  box: Box;
  colourIndex: number; // of the expression, or of the model where several are compared
  present: boolean;
  iou: number | null; // with the true box, where one is drawn
}

/** True boxes that were drawn, by `truthKey`. */
export type Truths = Record<string, Box>;
export const truthKey = (picture: Picture, expression: string) => `${picture.url} ${expression}`;

export const truthsOf = ({ picture, expressions }: Question, truths: Truths) =>
  expressions.map((expression) => truths[truthKey(picture, expression)]).filter((box) => box !== undefined);

export const expressionsOf = (text: string) => text.split("\n").flatMap((line) => line.trim() || []);

export const answersOf = ({ models, outcomes }: Question): Answer[] =>
  models.flatMap(({ name }) => (outcomes[name] && "answer" in outcomes[name] ? outcomes[name].answer : []));

export const failuresOf = ({ outcomes }: Question) =>
  Object.entries(outcomes).flatMap(([model, outcome]) =>
    "failure" in outcome ? { model, failure: outcome.failure } : [],
  );

/** Whether the object counts as there: by the given threshold, or as the model itself says. */
export function isPresent(found: Found, threshold: number | null): boolean {
  return threshold === null || found.score === null ? found.present !== false : found.score >= threshold;
}

/** For each expression, what each model that has answered found. */
export function resultsOf(question: Question, threshold: number | null, truths: Truths): Result[][] {
  const { picture, expressions, models, outcomes } = question;
  return expressions.map((expression, row) => {
    const truth = truths[truthKey(picture, expression)];
    return models.flatMap((model, column) => {
      const outcome = outcomes[model.name];
      if (!outcome || "failure" in outcome) return [];
      const found = outcome.answer.results[row]!;
      const box = found.box_xyxy as Box;
      return {
        model,
        found,
        box,
        colourIndex: models.length > 1 ? column : row,
        present: isPresent(found, threshold),
        iou: truth ? iou(truth, box) : null,
      };
    });
  });
}

/** What a screen reader says of the results. */
export function spoken(results: Result[][]): string {
  const texts = results
    .flat()
    .map(({ model, found, present, iou }) =>
      [
        `${found.expression}: ${present ? "found" : "not in the picture"}`,
        ...(found.score === null ? [] : [`score ${found.score.toFixed(2)}`]),
        ...(iou === null ? [] : [`IoU ${iou.toFixed(2)}`]),
        `by ${model.name}`,
      ].join(", "),
    );
  return texts.join(". ");
}
