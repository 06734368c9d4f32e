/** Boxes and dots with their labels, as SVG without a style sheet, for the screen and for files. */
import { colour, type Box } from "./boxes";
import { dotOf, FAMILY, INK, PAPER, type Entry, type Marked, type Style, labelSize, paddingOf } from "./drawing";
import type { Place, Target } from "./questions";

interface Props {
  marked: Marked[];
  truths: Box[]; // in pixels of the drawing
  style: Style;
  fades?: (place: Place) => boolean;
  onActive?: (target: Target | null) => void;
}

export function Drawing({ marked, truths, style, fades = () => false, onActive }: Props) {
  const { line, halo } = style;
  const dot = dotOf(style);
  const marking = ({ place }: Marked, kind: string) => ({
    className: fades(place) ? `${kind} faded` : kind,
    "data-expression": place.target.expression,
    "data-model": place.model.name,
    ...(onActive && { onPointerEnter: () => onActive(place.target), onPointerLeave: () => onActive(null) }),
  });
  const labelled = marked
    .flatMap((each) => (each.label ? { ...each, label: each.label } : []))
    .sort((a, b) => a.place.number - b.place.number);
  return (
    <>
      {marked.map(
        (each) =>
          each.box && (
            <g key={keyOf(each)} {...marking(each, "box")}>
              <Rectangle box={each.box} className="halo" stroke={INK} strokeWidth={line + 2 * halo} />
              <Rectangle box={each.box} className="line" stroke={colour(each.place.colourIndex)} strokeWidth={line} />
            </g>
          ),
      )}
      {truths.map((box, index) => (
        <Truth key={index} box={box} style={style} />
      ))}
      {marked.map(
        (each) =>
          each.point && (
            <g key={keyOf(each)} {...marking(each, "point")} color={colour(each.place.colourIndex)}>
              <circle cx={each.point[0]} cy={each.point[1]} r={dot + 2 * halo} fill={INK} />
              <circle cx={each.point[0]} cy={each.point[1]} r={dot + halo} fill={PAPER} />
              <circle
                cx={each.point[0]}
                cy={each.point[1]}
                r={dot}
                stroke={INK}
                strokeWidth={halo}
                fill="currentcolor"
              />
            </g>
          ),
      )}
      {labelled.map((each) => {
        if (!each.label.isLed) return null;
        const { width, height } = each.mark.sizes[each.label.version]!;
        const [x, y] = [each.label.x + width / 2, each.label.y + height / 2];
        const [x1, y1, x2, y2] = each.mark.box;
        const ends = { x1: x, y1: y, x2: Math.min(Math.max(x, x1), x2), y2: Math.min(Math.max(y, y1), y2) };
        return (
          <g key={keyOf(each)} className={fades(each.place) ? "lead faded" : "lead"} pointerEvents="none">
            <line {...ends} stroke={INK} strokeWidth={halo + 2} />
            <line {...ends} stroke={colour(each.place.colourIndex)} strokeWidth={halo} />
          </g>
        );
      })}
      {labelled.map((each) => (
        <g key={keyOf(each)} className={fades(each.place) ? "label faded" : "label"} pointerEvents="none">
          <Tag
            {...each.label}
            {...each.mark.sizes[each.label.version]!}
            text={each.texts[each.label.version]!}
            fill={colour(each.place.colourIndex)}
            style={style}
          />
        </g>
      ))}
    </>
  );
}

/** A box that a person drew. */
export function Truth({ box, style: { line, halo } }: { box: Box; style: Style }) {
  return (
    <g className="truth" pointerEvents="none">
      <Rectangle box={box} stroke={INK} strokeWidth={line + 2 * halo} />
      <Rectangle box={box} stroke={PAPER} strokeWidth={line} strokeDasharray={`${3 * line} ${2 * line}`} />
    </g>
  );
}

interface RectangleProps extends Omit<React.SVGProps<SVGRectElement>, "ref"> {
  box: Box;
}

function Rectangle({ box: [x1, y1, x2, y2], ...rest }: RectangleProps) {
  return <rect x={x1} y={y1} width={Math.max(0, x2 - x1)} height={Math.max(0, y2 - y1)} fill="transparent" {...rest} />;
}

interface TagProps {
  x: number;
  y: number;
  width: number;
  height: number;
  text: string;
  fill: string;
  style: Style;
}

function Tag({ x, y, width, height, text, fill, style }: TagProps) {
  return (
    <>
      <rect x={x + 0.5} y={y + 0.5} width={width - 1} height={height - 1} rx={2} fill={fill} stroke={INK} />
      <Text x={x + width / 2} y={y + height / 2} text={text} style={style} anchor="middle" />
    </>
  );
}

function Text({
  x,
  y,
  text,
  style,
  anchor,
}: {
  x: number;
  y: number;
  text: string;
  style: Style;
  anchor: "start" | "middle";
}) {
  return (
    <text
      x={x}
      y={y}
      fill={INK}
      fontFamily={FAMILY}
      fontSize={style.type}
      fontWeight={500}
      textAnchor={anchor}
      dominantBaseline="central"
    >
      {text}
    </text>
  );
}

const rowHeight = (style: Style) => style.type + 4 * paddingOf(style);

/** Pixels that the legend takes. */
export const legendHeight = (entries: Entry[], style: Style) =>
  entries.length ? entries.length * rowHeight(style) + paddingOf(style) : 0;

/** Below a picture: the words of its numbers. */
export function Legend({ entries, top, style }: { entries: Entry[]; top: number; style: Style }) {
  const gap = paddingOf(style);
  const indent = 3 * gap + Math.max(...entries.map(({ numbers }) => labelSize(numbers, style).width));
  return entries.map(({ numbers, words, colour }, index) => {
    const y = top + gap + index * rowHeight(style);
    return (
      <g key={index}>
        <Tag x={gap} y={y + gap} {...labelSize(numbers, style)} text={numbers} fill={colour} style={style} />
        <Text x={indent} y={y + rowHeight(style) / 2} text={words} style={style} anchor="start" />
      </g>
    );
  });
}

const keyOf = ({ place: { target, model } }: Marked) => `${model.name} ${target.expression} ${target.rank ?? ""}`;
