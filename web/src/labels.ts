/** Places labels: inside the picture, without overlapping each other, and hiding as little as possible of the marks.
 *
 * The same rule as in referent/client/labels.py; both are tested against tests/client/label_layouts.json. */
import type { Box, Size } from "./boxes";

const MOST_LABELS = 128; // more than a picture has room for; further marks get no label
const HIDDEN = 0.35; // a shorter label is tried if the hidden shares of marks add up to more
const REACH = 4; // how far a label with words may be from its mark, in heights of the label
const RELUCTANCE = 0.02; // a place of `around` must hide so much less than an earlier one to be preferred
const VERSIONS = [60, 24, 12]; // characters of an expression in a label, and in shorter ones
const CELLS = 32; // the most rows and columns of the grid that is searched if there is no room around a mark

/** What a label is for. Lengths are pixels of the picture. */
export interface Mark {
  box: Box; // a box; of a point, the square around its dot
  isDot: boolean; // no label covers a dot
  isFirst: boolean; // the mark whose label has the expression's words; it is placed before the others
  sizes: Size[]; // of the label's versions, the longest first
}

/** Where a label is. */
export interface Label {
  version: number; // which of the mark's sizes
  x: number; // of its top left corner
  y: number;
  isLed: boolean; // it is away from its mark, and a line leads there
}

/** A place for each mark's label; null if there is no room for any version.
 *
 * The longest version with words that hides little is placed around its mark. If there is none, a label with words is
 * placed not far away, connected by a line. If that fails too, the last version, a number, is placed anywhere. */
export function placeLabels(picture: Size, marks: Mark[]): (Label | null)[] {
  const places: (Label | null)[] = marks.map(() => null);
  const areas = marks.map(({ box: [x1, y1, x2, y2] }) => Math.max((x2 - x1) * (y2 - y1), 1));
  const taken = marks.flatMap(({ box, isDot }) => (isDot ? [box] : []));
  const order = marks
    .map((_, index) => index)
    .sort((a, b) => Number(marks[b]!.isFirst) - Number(marks[a]!.isFirst) || areas[a]! - areas[b]! || a - b);
  for (const index of order.slice(0, MOST_LABELS)) {
    const mark = marks[index]!;
    const label = find({ picture, marks, areas, taken }, mark);
    places[index] = label;
    if (label) taken.push(rectangle([label.x, label.y], mark.sizes[label.version]!));
  }
  return places;
}

interface Space {
  picture: Size;
  marks: Mark[];
  areas: number[];
  taken: Box[];
}

function find(space: Space, mark: Mark): Label | null {
  const number = mark.sizes.length - 1;
  for (let version = 0; version < number; version++) {
    const label = near(space, mark, version, HIDDEN);
    if (label) return label;
  }
  for (let version = 0; mark.isFirst && version < number; version++) {
    const label = away(space, mark, version, REACH * mark.sizes[version]!.height);
    if (label) return label;
  }
  return near(space, mark, number, Infinity) ?? away(space, mark, number, Infinity);
}

/** The place around the mark that hides least; null if it hides more than `most`. */
function near(space: Space, mark: Mark, version: number, most: number): Label | null {
  const { picture, marks, areas } = space;
  const size = mark.sizes[version]!;
  let [best, least] = [null as Label | null, Infinity];
  for (const [index, [x, y]] of around(picture, mark.box, size).entries()) {
    const place = rectangle([x, y], size);
    const hidden = marks.reduce((sum, { box }, other) => sum + common(place, box) / areas[other]!, 0);
    const cost = rounded(hidden + RELUCTANCE * index, 1e6);
    if (cost < least && isFree(space, place)) [best, least] = [{ version, x, y, isLed: false }, cost];
  }
  return least <= most ? best : null;
}

/** The free place of a grid that is nearest to the mark, from edge to edge; null if it is beyond `reach`. */
function away(space: Space, { box, sizes }: Mark, version: number, reach: number): Label | null {
  const { picture } = space;
  const size = sizes[version]!;
  const step = Math.max(size.height / 2, picture.width / CELLS, picture.height / CELLS);
  const columns = Math.floor(Math.max(0, picture.width - size.width) / step) + 1;
  const rows = Math.floor(Math.max(0, picture.height - size.height) / step) + 1;
  let [best, least] = [null as Label | null, Infinity];
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) {
      const [x, y] = [column * step, row * step];
      const place = rectangle([x, y], size);
      const gap = (side: 0 | 1) => Math.max(0, box[side] - place[side + 2]!, place[side] - box[side + 2]!);
      const distance = rounded(gap(0) ** 2 + gap(1) ** 2, 1e3);
      if (distance < least && isFree(space, place)) [best, least] = [{ version, x, y, isLed: true }, distance];
    }
  return least <= reach ** 2 ? best : null;
}

/** Top left corners around the box and inside it, in order of preference; moved into the picture. */
function around(picture: Size, [x1, y1, x2, y2]: Box, { width, height }: Size): [number, number][] {
  const [left, right, above, below] = [x2 - width, x1 - width, y1 - height, y2 - height];
  // prettier-ignore
  const corners: [number, number][] = [
    [x1, above], [left, above], [x1, y2], [left, y2], [x2, y1], [right, y1], [x2, below], [right, below],
    [x1, y1], [left, y1], [x1, below], [left, below],
  ];
  const moved = (start: number, own: number, whole: number) => Math.min(Math.max(start, 0), Math.max(0, whole - own));
  return corners.map(([x, y]) => [moved(x, width, picture.width), moved(y, height, picture.height)]);
}

const isFree = ({ picture, taken }: Space, place: Box) =>
  place[2] <= picture.width + 1e-6 &&
  place[3] <= picture.height + 1e-6 &&
  !taken.some((other) => common(place, other) > 1e-6);

const rectangle = ([x, y]: [number, number], { width, height }: Size): Box => [x, y, x + width, y + height];

const common = (a: Box, b: Box) =>
  Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

const rounded = (value: number, scale: number) => Math.round(value * scale) / scale;

/** What a mark's label may say, the longest first; the last is its number alone.
 *
 * `rank` is the referent's place among several, from 1; null for an expression's only one. The first has the words. */
export function versions(expression: string, score: number | null, number: number, rank: number | null): string[] {
  const sure = score === null ? [] : [score.toFixed(2)];
  const start = rank === null ? [] : [`${number}`];
  const texts =
    rank !== null && rank > 1
      ? [[`${number}`, ...sure]]
      : VERSIONS.map((most) => [...start, shortened(expression, most), ...sure]);
  return [...texts.map((parts) => parts.join(" ")), `${number}`];
}

/** The words of the expression in this version of its label; null for the version that is only a number. */
export const shortForm = (expression: string, version: number) =>
  version < VERSIONS.length ? shortened(expression, VERSIONS[version]!) : null;

/** The text in one line of at most so many characters. The middle is left out, since ends tell expressions apart; if
 * possible, whole words are left out. */
export function shortened(text: string, most: number): string {
  const line = Array.from(text.split(/\s+/).filter(Boolean).join(" "));
  if (line.length <= most) return line.join("");
  const tail = Math.floor(((most - 1) * 2) / 5);
  const [start, end] = [line.slice(0, most - 1 - tail).join(""), line.slice(line.length - tail).join("")];
  const [words, rest] = [start.slice(0, Math.max(0, start.lastIndexOf(" "))), end.slice(end.indexOf(" ") + 1)];
  return `${words || start}…${rest || end}`;
}
