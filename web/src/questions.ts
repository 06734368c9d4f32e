/** A question and its answers: the state that the page shows. */
import { around, contains, iou, neighbourhood, type Box, type Point } from "./boxes";
import type { Picture } from "./pictures";
import type { Answer, Failure, GroundResponse, Model, Options, Referent } from "./service";

export interface Question {
  id: number;
  picture: Picture;
  expressions: string[];
  isTyped: boolean; // by a person, not by a sample
  models: Model[];
  options: Options;
  outcomes: Record<string, Outcome>; // by the model's name; none yet while it is being answered
}

export type Outcome = { response: GroundResponse } | { failure: Failure };

/** One model's result for one expression. */
export interface Result {
  model: Model;
  answer: Answer;
  places: Place[]; // best first
  colourIndex: number; // of the expression, or of the model where several are compared
  present: boolean; // whether any place counts as there
}

/** Where one referent is. */
export interface Place {
  target: Target;
  referent: Referent;
  box: Box | null;
  point: Point | null;
  rank: number | null; // from 1 on, the best first; null: the answer has no other place
  number: number; // among all that the model found, from 1; its label shows it if there is no room for words
  model: Model;
  colourIndex: number;
  present: boolean;
  fit: string | null; // how well it fits the true box, if one is drawn
}

/** What is highlighted or zoomed to: all places of an expression, or one of a model's several. */
export interface Target {
  expression: number;
  model?: string;
  rank?: number;
}

export const isAt = (target: Target, place: Target) =>
  target.expression === place.expression &&
  (target.rank === undefined || (target.rank === place.rank && target.model === place.model));

/** True boxes that were drawn, by `truthKey`. */
export type Truths = Record<string, Box>;
export const truthKey = (picture: Picture, expression: string) => `${picture.url} ${expression}`;

export const truthsOf = ({ picture, expressions }: Question, truths: Truths) =>
  expressions.map((expression) => truths[truthKey(picture, expression)]).filter((box) => box !== undefined);

export const expressionsOf = (rows: string[]) => [...new Set(rows.flatMap((row) => row.trim() || []))];

export const responsesOf = ({ models, outcomes }: Question): GroundResponse[] =>
  models.flatMap(({ name }) => (outcomes[name] && "response" in outcomes[name] ? outcomes[name].response : []));

export const failuresOf = ({ outcomes }: Question) =>
  Object.entries(outcomes).flatMap(([model, outcome]) =>
    "failure" in outcome ? { model, failure: outcome.failure } : [],
  );

/** Whether a referent counts as found: by the given threshold, or by the model's own. */
export function isPresent(referent: Referent, threshold: number | null): boolean {
  return threshold === null || referent.score === null ? referent.present !== false : referent.score >= threshold;
}

/** The referents of an answer, best first. If it has none, its best guess, if the model gives one. */
export function referentsOf(answer: Answer): Referent[] {
  const referents = answer.referents.length ? answer.referents : [answer];
  return referents.filter(({ box_xyxy, point_xy }) => box_xyxy || point_xy);
}

/** For each expression, what each model that has answered found. */
export function resultsOf(question: Question, threshold: number | null, truths: Truths): Result[][] {
  const { picture, expressions, models, outcomes } = question;
  const numbers = models.map(() => 0);
  return expressions.map((text, expression) => {
    const truth = truths[truthKey(picture, text)];
    return models.flatMap((model, column) => {
      const outcome = outcomes[model.name];
      if (!outcome || "failure" in outcome) return [];
      const answer = outcome.response.results[expression]!;
      const colourIndex = models.length > 1 ? column : expression;
      const places = referentsOf(answer).map((referent, index, { length }): Place => {
        const [box, point] = [referent.box_xyxy as Box | null, referent.point_xy as Point | null];
        const rank = length > 1 ? index + 1 : null;
        const present = isPresent(referent, threshold);
        if (present) numbers[column]!++;
        return {
          target: rank === null ? { expression } : { expression, model: model.name, rank },
          referent,
          box,
          point,
          rank,
          number: numbers[column]!,
          model,
          colourIndex,
          present,
          fit: truth ? fit(truth, box, point) : null,
        };
      });
      return { model, answer, places, colourIndex, present: places.some(isThere) };
    });
  });
}

function fit(truth: Box, box: Box | null, point: Point | null): string | null {
  if (box) return `IoU ${iou(truth, box).toFixed(2)}`;
  return point && (contains(truth, point) ? "inside the true box" : "outside the true box");
}

export const isThere = ({ present }: { present: boolean }): boolean => present;

export const placesThere = (results: Result[][]): Place[] =>
  results.flat().flatMap(({ places }) => places.filter(isThere));

/** The places of the target to zoom to; each model's best guess if nothing was found. */
export function placesAt(results: Result[][], target: Target): Place[] {
  const shown = (results[target.expression] ?? []).flatMap(({ places }) => {
    const there = places.filter(isThere);
    return there.length ? there : places.slice(0, 1);
  });
  return shown.filter((place) => isAt(target, place.target));
}

/** The smallest box around all of them, with the surroundings of points; null without any. */
export const extentOf = (places: Place[], picture: Picture): Box | null =>
  places.length ? around(places.map(({ box, point }) => box ?? neighbourhood(point!, picture))) : null;

/** The results as text for a screen reader. */
export function spoken(results: Result[][]): string {
  const texts = results.flat().map((result) => {
    const { answer, places, model } = result;
    return [
      `${answer.expression}: ${verdict(result)}`,
      ...(answer.score === null ? [] : [`score ${answer.score.toFixed(2)}`]),
      ...places.flatMap(({ fit, rank }) => (fit === null ? [] : rank === null ? fit : `${rank}: ${fit}`)),
      ...(isCut(answer) ? [CUT] : []),
      `by ${model.name}`,
    ].join(", ");
  });
  return texts.join(". ");
}

export const isCut = (answer: Answer) => answer.finish_reason === "length";
export const CUT = "the list was cut off at the limit";

/** The result for an expression, in words. */
export function verdict({ answer, places, present }: Result): string {
  if (answer.finish_reason === "error") return "this expression failed";
  if (!present) return !places.length && answer.present !== false ? "no place in the answer" : "not in the picture";
  return places.length > 1 ? `${places.filter(isThere).length} found` : "found";
}

/** The highest score of all answers; null without scores. */
export function bestGuess(results: Result[][]) {
  const scored = results
    .flat()
    .flatMap(({ answer, model, places }) =>
      answer.score === null
        ? []
        : { score: answer.score, expression: answer.expression, model, hasPlace: places.length > 0 },
    );
  return scored.sort((a, b) => b.score - a.score)[0] ?? null;
}

/** Where a model looked for an expression. */
export interface Warm {
  cells: number[][];
  frame: Box; // what they cover; it may reach beyond the picture
  colourIndex: number;
  expression: number;
  model: string;
}

/** The heat maps of the answers that have one. */
export const warmOf = ({ models, outcomes }: Question): Warm[] =>
  models.flatMap(({ name }, column) => {
    const outcome = outcomes[name];
    if (!outcome || "failure" in outcome) return [];
    return outcome.response.results.flatMap(({ heatmap, heatmap_xyxy }, expression) =>
      heatmap && heatmap_xyxy
        ? {
            cells: heatmap,
            frame: heatmap_xyxy as Box,
            colourIndex: models.length > 1 ? column : expression,
            expression,
            model: name,
          }
        : [],
    );
  });
