/** The picture with its boxes; whole or a part of it; and a hand that draws the true box. */
import { useEffect, useRef, useState, type KeyboardEvent, type PointerEvent, type ReactNode } from "react";
import { area, clip, colour, placement, type Box } from "./boxes";
import type { Picture } from "./pictures";
import type { Result } from "./questions";

const LEAST_SIDE = 3; // of a drawn box, pixels of the picture: less is a click
const STEPS = 50; // of the arrow keys, across the picture

interface Props {
  picture: Picture;
  results: Result[][]; // by expression
  truths: Box[];
  view: Box | null; // the part to show; null: all
  active: number | null;
  onActive: (expression: number | null) => void;
  drawing: { expression: string; takesKeys: boolean } | null;
  onDrawn: (box: Box) => void;
  caption: ReactNode;
}

export function Stage({ picture, results, truths, view, active, onActive, drawing, onDrawn, caption }: Props) {
  const { width, height } = picture;
  const shown = results
    .flatMap((row, expression) => row.map((result) => ({ ...result, expression })))
    .filter(({ present }) => present)
    .sort((a, b) => area(b.box) - area(a.box)); // small ones on top, to be pointed at
  const fades = (expression: number) => active !== null && active !== expression;
  const names = shown.map(({ found }) => found.expression).join(", ");

  const figure = useRef<HTMLElement>(null);
  const looksAt = view?.join();
  useEffect(() => {
    if (looksAt) figure.current?.scrollIntoView({ block: "nearest" }); // on a phone the list is far below
  }, [looksAt]);

  return (
    <figure className="stage" ref={figure}>
      {caption && <figcaption>{caption}</figcaption>}
      <div
        className="frame"
        style={{ aspectRatio: `${width} / ${height}`, "--ratio": width / height } as React.CSSProperties}
      >
        <div className="canvas" style={placement(view ?? [0, 0, width, height], picture)}>
          <img src={picture.url} alt={`The picture, ${picture.name}`} draggable={false} />
          <svg viewBox={`0 0 ${width} ${height}`} role="img" aria-label={names ? `Boxes: ${names}` : "No boxes"}>
            {shown.map(({ model, box, colourIndex, expression }) => (
              <g
                key={`${model.name} ${expression}`}
                className={fades(expression) ? "box faded" : "box"}
                data-expression={expression}
                data-model={model.name}
                onPointerEnter={() => onActive(expression)}
                onPointerLeave={() => onActive(null)}
              >
                <Rectangle box={box} className="halo" />
                <Rectangle box={box} className="line" stroke={colour(colourIndex)} />
              </g>
            ))}
            {truths.map((box, index) => (
              <Truth key={index} box={box} />
            ))}
          </svg>
          {shown.map(({ model, found, box, colourIndex, expression }) => (
            <span
              key={`${model.name} ${expression}`}
              className={fades(expression) ? "label faded" : "label"}
              aria-hidden="true" // the list says it
              style={{ background: colour(colourIndex), ...labelPlace(box, picture) }}
            >
              {found.expression} <b>{found.score?.toFixed(2)}</b>
            </span>
          ))}
          {drawing && <Pen key={drawing.expression} picture={picture} {...drawing} onDrawn={onDrawn} />}
        </div>
      </div>
    </figure>
  );
}

function Rectangle({ box: [x1, y1, x2, y2], ...rest }: { box: Box; className: string; stroke?: string }) {
  return <rect x={x1} y={y1} width={x2 - x1} height={y2 - y1} vectorEffect="non-scaling-stroke" {...rest} />;
}

function Truth({ box }: { box: Box }) {
  return (
    <g className="truth">
      <Rectangle box={box} className="halo" />
      <Rectangle box={box} className="dashes" />
    </g>
  );
}

/** On top of the box, inside the picture: from the box's left side, or its right side in the right half. */
function labelPlace([x1, y1, x2]: Box, { width, height }: Picture) {
  const isRight = x1 + x2 > width;
  return {
    top: `max(${(100 * y1) / height}%, 1.5rem)`,
    ...(isRight ? { right: `${100 - (100 * x2) / width}%` } : { left: `${(100 * x1) / width}%` }),
    maxWidth: `${isRight ? (100 * x2) / width : 100 - (100 * x1) / width}%`,
  };
}

interface PenProps {
  picture: Picture;
  expression: string;
  takesKeys: boolean;
  onDrawn: (box: Box) => void;
}

/** Draws a box: by dragging; or with arrows (Shift: its far corner) and Enter. */
function Pen({ picture, expression, takesKeys, onDrawn }: PenProps) {
  const [draft, setDraft] = useState<Box | null>(null);
  const corner = useRef<[number, number]>(null); // where a drag began
  const surface = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (takesKeys) surface.current?.focus();
  }, [takesKeys]);

  const at = (event: PointerEvent): [number, number] => {
    const { left, top, width, height } = event.currentTarget.getBoundingClientRect();
    return [((event.clientX - left) / width) * picture.width, ((event.clientY - top) / height) * picture.height];
  };
  const drag = (event: PointerEvent): Box | null => {
    if (!corner.current) return null;
    const [[x1, y1], [x2, y2]] = [corner.current, at(event)];
    return clip([Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)], picture);
  };
  const press = (event: KeyboardEvent) => {
    const { width, height } = picture;
    const [x1, y1, x2, y2] = draft ?? [width / 4, height / 4, (3 * width) / 4, (3 * height) / 4];
    const arrows: Record<string, [number, number]> = {
      ArrowLeft: [-width / STEPS, 0],
      ArrowRight: [width / STEPS, 0],
      ArrowUp: [0, -height / STEPS],
      ArrowDown: [0, height / STEPS],
    };
    const step = arrows[event.key];
    if (event.key === "Enter" && draft) onDrawn(draft);
    else if (step && event.shiftKey) setDraft([x1, y1, Math.max(x1, x2 + step[0]), Math.max(y1, y2 + step[1])]);
    else if (step) setDraft([x1 + step[0], y1 + step[1], x2 + step[0], y2 + step[1]]);
    else return;
    event.preventDefault();
  };

  return (
    <div
      ref={surface}
      className="pen"
      role="application"
      aria-roledescription="drawing area"
      aria-label={`True box of ${expression}. Arrows move it, Shift and arrows size it, Enter keeps it, Escape leaves.`}
      tabIndex={0}
      onKeyDown={press}
      onPointerDown={(event) => {
        event.currentTarget.setPointerCapture(event.pointerId);
        corner.current = at(event);
      }}
      onPointerMove={(event) => corner.current && setDraft(drag(event))}
      onPointerUp={(event) => {
        const box = drag(event);
        corner.current = null;
        if (box && Math.min(box[2] - box[0], box[3] - box[1]) >= LEAST_SIDE) onDrawn(box);
        else setDraft(null);
      }}
    >
      <svg viewBox={`0 0 ${picture.width} ${picture.height}`} aria-hidden="true">
        {draft && <Truth box={draft} />}
      </svg>
    </div>
  );
}
