/** What is drawn for places, on the screen and in files: sizes, marks, labels, as in referent/client/drawing.py. */
import { colour, type Box, type Point, type Size } from "./boxes";
import { placeLabels, shortForm, shortened, versions, type Label, type Mark } from "./labels";
import type { Place } from "./questions";

/** Sizes in pixels. */
export interface Style {
  type: number;
  line: number;
  halo: number; // on either side of a line, so that it is visible on any background
}

export const FAMILY = "Inter, system-ui, sans-serif";
export const INK = "#000";
export const PAPER = "#fff";

/** For the screen. */
export const SCREEN: Style = { type: 12, line: 2, halo: 1 };

/** For a file, in proportion to the picture. */
export function styleOf({ width, height }: Size): Style {
  const side = Math.sqrt(width * height);
  const line = Math.max(2, Math.round(side / 300));
  return { type: Math.max(11, Math.round(side / 45)), line, halo: Math.max(1, Math.round(line / 2)) };
}

export const dotOf = ({ line }: Style) => 3 * line + 1; // radius
export const paddingOf = ({ type }: Style) => Math.max(2, Math.floor(type / 5) + 1);

/** A place with what is drawn for it. */
export interface Marked {
  place: Place;
  box: Box | null; // in pixels of the drawing
  point: Point | null;
  mark: Mark;
  texts: string[]; // of its label, the longest first
  label: Label | null;
}

/** The places in a drawing of this size, large ones first; `view` is the part of the picture that is shown. */
export function layout(places: Place[], view: Box, size: Size, style: Style): Marked[] {
  const scale = size.width / (view[2] - view[0]);
  const at = ([x, y]: Point): Point => [(x - view[0]) * scale, (y - view[1]) * scale];
  const all = places.map((place): Marked => {
    const point = place.point && at(place.point);
    const box = place.box && ([...at([place.box[0], place.box[1]]), ...at([place.box[2], place.box[3]])] as Box);
    const reach = style.line / 2 + style.halo + (box ? 0 : dotOf(style));
    const [x1, y1, x2, y2] = box ?? [...point!, ...point!];
    const { expression, score } = place.referent;
    const texts = versions(expression, score, place.number, place.rank);
    const mark = {
      box: [x1 - reach, y1 - reach, x2 + reach, y2 + reach] as Box,
      isDot: !box,
      isFirst: place.rank === null || place.rank === 1,
      sizes: texts.map((text) => labelSize(text, style)),
    };
    return { place, box, point, mark, texts, label: null };
  });
  const shown = all.filter(
    ({ mark: { box } }) => box[2] > 0 && box[3] > 0 && box[0] < size.width && box[1] < size.height,
  );
  const labels = placeLabels(size, shown.map(({ mark }) => ({ ...mark, box: within(mark.box, size) }))); // prettier-ignore
  shown.forEach((each, index) => (each.label = labels[index]!));
  const area = ({ box }: Marked) => (box ? (box[2] - box[0]) * (box[3] - box[1]) : 0);
  return all.sort((a, b) => area(b) - area(a)); // small ones on top, to be pointed at
}

const within = ([x1, y1, x2, y2]: Box, { width, height }: Size): Box => [
  Math.max(x1, -2),
  Math.max(y1, -2),
  Math.min(x2, width + 2),
  Math.min(y2, height + 2),
];

/** A line of the legend below a picture. */
export interface Entry {
  colour: string;
  numbers: string;
  words: string;
}

/** Expressions whose label doesn't show them: it is missing, a number, or a short form that others have too. */
export function legend(marked: Marked[]): Entry[] {
  const firsts = marked
    .filter(({ mark }) => mark.isFirst)
    .sort((a, b) => a.place.number - b.place.number)
    .map((each) => ({ ...each, said: each.label && shortForm(each.place.referent.expression, each.label.version) }));
  const whole = new Map<string | null, Set<string>>();
  for (const { said, place } of firsts) whole.set(said, (whole.get(said) ?? new Set()).add(place.referent.expression));
  return firsts
    .filter(({ said }) => said === null || whole.get(said)!.size > 1)
    .map(({ place: { referent, number, model, target, rank, colourIndex } }) => {
      const last = marked.filter(
        (each) => each.place.model === model && each.place.target.expression === target.expression,
      );
      const score = rank === null && referent.score !== null ? ` ${referent.score.toFixed(2)}` : "";
      return {
        colour: colour(colourIndex),
        numbers: rank === null ? `${number}` : `${number}–${number + last.length - 1}`,
        words: shortened(referent.expression, 200) + score,
      };
    });
}

const pen = document.createElement("canvas").getContext("2d")!;

export function textWidth(text: string, { type }: Style): number {
  pen.font = `500 ${type}px ${FAMILY}`;
  return Math.ceil(pen.measureText(text).width);
}

export function labelSize(text: string, style: Style): Size {
  const padding = paddingOf(style);
  return { width: textWidth(text, style) + 2 * padding, height: style.type + 2 * padding };
}

const WARMEST = 0.6; // how much of the colour covers the picture where a heat map is 1

/** A heat map as a small picture to be stretched over its frame. */
export function heat(cells: number[][], index: number): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [cells[0]?.length ?? 0, cells.length];
  const context = canvas.getContext("2d")!;
  context.fillStyle = colour(index);
  cells.forEach((row, y) =>
    row.forEach((value, x) => {
      context.globalAlpha = WARMEST * Math.min(1, Math.max(0, value));
      context.fillRect(x, y, 1, 1);
    }),
  );
  return canvas;
}
