/** The page: a picture, words, and where in the picture is what they refer to. */
import { useEffect, useMemo, useReducer, useRef, type ReactNode } from "react";
import { clip, colour, viewOf, type Box } from "./boxes";
import { Camera } from "./Camera";
import { History } from "./History";
import { useEscape, useFiles, useMedia, useService } from "./hooks";
import { Intake } from "./Intake";
import { Keep } from "./Keep";
import { Knows, Nothing } from "./Knows";
import { Models } from "./Models";
import { Notice } from "./Notice";
import { Options } from "./Options";
import { readPicture, SAMPLES, type Picture, type Sample } from "./pictures";
import {
  expressionsOf,
  extentOf,
  failuresOf,
  isThere,
  placesAt,
  placesThere,
  responsesOf,
  resultsOf,
  spoken,
  truthsOf,
  warmOf,
  type Question,
  type Target,
} from "./questions";
import { Rows } from "./Rows";
import { ground, ServiceError, type Model, type Options as Asking } from "./service";
import { Stage } from "./Stage";
import { isAnswered, reduce, START } from "./state";
import { ThemeToggle } from "./ThemeToggle";
import { Threshold } from "./Threshold";
import { ms, Timings } from "./Timings";

export function App() {
  const { models, metadata, outage, look } = useService();
  const [state, dispatch] = useReducer(reduce, START);
  const { chosen, options, rows, isTyped, picture, refused, questions, shownId, isAsking } = state;
  const { threshold, truths, isOverlaid, hasCamera, active, drawing, view, zoomed } = state;
  const asking = useRef<AbortController>(null); // of the latest request
  const isWaiting = useRef(false); // a sample, to be asked about when the models are known
  const top = useRef<HTMLElement>(null);
  const isNarrow = useMedia("(width < 900px)");

  const selected = useMemo(() => selectedOf(models ?? [], chosen), [models, chosen]);
  const question = questions.find(({ id }) => id === shownId) ?? null;
  const asked = expressionsOf(rows);
  const results = useMemo(() => {
    const found = question ? resultsOf(question, threshold, truths) : [];
    return found.map((row, index) => (rows.some((text) => text.trim() === question!.expressions[index]) ? row : []));
  }, [question, threshold, truths, rows]);
  const shown = results.filter((row) => row.length);
  const found = shown.filter((row) => row.some(isThere)).length;
  const isComparing = question !== null && question.models.length > 1;
  const places = useMemo(() => placesThere(results), [results]);
  const warm = useMemo(() => (question ? warmOf(question) : []), [question]);
  const sample = SAMPLES.find(({ name }) => name === picture?.name);
  const suggested = sample ? wordsOf(sample, selected).filter((words) => !asked.includes(words)) : [];
  const typed = useRef<string[] | null>(null); // by a person, also while a picture is being read
  useEffect(() => {
    typed.current = isTyped ? asked : null;
  });
  const isReady = picture !== null && asked.length > 0 && selected.length > 0;

  const ask = async (
    about: Picture,
    expressions: string[],
    byPerson: boolean,
    models = selected,
    wanted: Asking = options,
  ) => {
    asking.current?.abort();
    const controller = (asking.current = new AbortController());
    const { signal } = controller;
    const id = performance.now();
    const next: Question = {
      id,
      picture: about,
      expressions,
      isTyped: byPerson,
      models,
      options: wanted,
      outcomes: {},
    };
    dispatch({ type: "asked", question: next });
    await Promise.all(
      models.map(async ({ name }) => {
        try {
          const response = await ground(about.blob, about.name, expressions, name, wanted, signal);
          if (!signal.aborted) dispatch({ type: "answered", id, model: name, outcome: { response } });
        } catch (error) {
          if (signal.aborted) return;
          if (!(error instanceof ServiceError)) throw error;
          dispatch({ type: "answered", id, model: name, outcome: { failure: error.failure } });
          void look(); // the service may be gone, or serve something else
        }
      }),
    );
    if (asking.current !== controller) return;
    dispatch({ type: "ended" });
  };

  /** On phones: picture and answers are seen together. */
  const toPicture = () => {
    if (isNarrow) top.current?.scrollIntoView({ block: "start" });
  };

  const submit = () => {
    if (!isReady) return;
    void ask(picture, asked, isTyped);
    if (isNarrow) (document.activeElement as HTMLElement | null)?.blur(); // its keyboard goes
    toPicture();
  };

  const show = (next: Picture) => {
    isWaiting.current = false;
    asking.current?.abort();
    dispatch({ type: "shown", picture: next });
  };

  const take = async (file: File) => {
    const limit = metadata?.limits.image_bytes ?? Infinity;
    try {
      if (file.size > limit)
        throw new Error(
          `${file.name} is ${megabytes(file.size)}; the limit is ${megabytes(limit)}. Choose a smaller picture.`,
        );
      show(await readPicture(file, file.name));
      if (typed.current) return;
      dispatch({ type: "filled", rows: [""] });
      requestAnimationFrame(() =>
        document.querySelector<HTMLElement>(".rows textarea")?.focus({ preventScroll: true }),
      );
    } catch (error) {
      dispatch({ type: "refused", why: (error as Error).message });
    }
  };

  const takeSample = async (next: Sample) => {
    try {
      const about = await readPicture(await (await fetch(next.url)).blob(), next.name);
      const words = typed.current ?? wordsOf(next, selected); // what a person typed stays
      if (!typed.current) dispatch({ type: "filled", rows: words });
      if (selected.length && words.length) void ask(about, words, typed.current !== null);
      else show(about);
      isWaiting.current = !selected.length;
      toPicture();
    } catch (error) {
      dispatch({ type: "refused", why: `${next.name} can't be loaded: ${(error as Error).message}` });
    }
  };

  useEffect(() => {
    if (!isWaiting.current || !isReady) return; // for the models
    isWaiting.current = false;
    submit();
  });

  useFiles(take, (address) => dispatch({ type: "refused", why: addressed(address, metadata?.image_urls) }));
  useEscape(() =>
    dispatch(drawing !== null ? { type: "drawing", expression: null } : { type: "looked", view: null, target: null }),
  );

  const zoom = (target: Target | null) => {
    const extent = picture && target && extentOf(placesAt(results, target), picture);
    const closer = extent && viewOf(extent, picture, picture.width / picture.height);
    dispatch({ type: "looked", view: closer, target });
    toPicture();
  };

  const stage = (model: Model | null, caption: ReactNode, takesKeys = true) => {
    const isOurs = (name: string) => !model || name === model.name;
    return (
      <Stage
        key={model?.name ?? ""}
        picture={picture!}
        places={model ? places.filter((place) => isOurs(place.model.name)) : places}
        truths={question ? truthsOf(question, truths) : []}
        warm={warm.filter((each) => isOurs(each.model) && results[each.expression]!.length > 0)}
        view={view}
        onView={(next: Box | null) => dispatch({ type: "looked", view: next, target: null })}
        active={active}
        onActive={(target) => dispatch({ type: "pointed", target })}
        drawing={drawing !== null ? { expression: drawing, takesKeys } : null}
        onDrawn={(box) => dispatch({ type: "drawn", expression: drawing!, box: clip(box, picture!) })}
        caption={caption}
      />
    );
  };
  const names = isComparing ? question.models.map((model, i) => <Named key={i} model={model} index={i} />) : [];
  const history = (
    <History
      samples={SAMPLES}
      onSample={takeSample}
      questions={questions.filter(isAnswered)}
      shownId={shownId}
      onQuestion={(before) => {
        asking.current?.abort();
        dispatch({ type: "returned", question: before });
        toPicture();
      }}
    />
  );

  return (
    <>
      <header>
        <h1>
          <Mark /> Referent
        </h1>
        <p className="tagline">Where in this picture is what these words refer to?</p>
        <ThemeToggle />
      </header>
      <main>
        <section className="look" aria-label="Picture" ref={top}>
          {outage && <Notice failure={outage} onRetry={look} />}
          {!outage && models?.length === 0 && (
            <Message>
              No model is ready yet: the service is starting, or has none. This page checks again automatically.
            </Message>
          )}
          {refused && <Message>{refused}</Message>}
          <Intake
            picture={picture}
            formats={metadata?.formats ?? []}
            isZoomed={view !== null}
            onWhole={() => dispatch({ type: "looked", view: null, target: null })}
            onFile={take}
            onCamera={() => dispatch({ type: "set", values: { hasCamera: true } })}
          >
            {picture && isComparing && !isOverlaid ? (
              <div className="side-by-side">
                {question.models.map((model, index) => stage(model, names[index], index === 0))}
              </div>
            ) : (
              picture && stage(null, isComparing && names)
            )}
          </Intake>
          {!isNarrow && history}
        </section>
        <section className="ask" aria-label="Question and answer">
          <form
            onSubmit={(event) => {
              event.preventDefault();
              submit();
            }}
          >
            <h2 className="found">
              {shown.length > 0 ? `${found} of ${shown.length} found` : "What to look for"}
              {question && shown.length > 0 && (
                <span>
                  {responsesOf(question)
                    .map(({ timings_ms }) => ms(timings_ms.total))
                    .join(" and ")}
                </span>
              )}
            </h2>
            {question && shown.length > 0 && found === 0 && (
              <Nothing
                question={question}
                results={shown}
                threshold={threshold}
                onThreshold={(value) => dispatch({ type: "set", values: { threshold: value } })}
              />
            )}
            <Rows
              rows={rows}
              examples={sample ? wordsOf(sample, selected) : wordsOf(SAMPLES[1]!, selected)}
              question={question}
              results={results}
              truths={truths}
              active={active}
              zoomed={zoomed}
              drawing={drawing}
              onZoom={zoom}
              onSubmit={submit}
              dispatch={dispatch}
            />
            {suggested.length > 0 && (
              <div className="suggested" role="group" aria-label="Words that work here">
                <span aria-hidden="true">Try</span>
                {suggested.map((words) => (
                  <button key={words} type="button" onClick={() => dispatch({ type: "added", text: words })}>
                    {words}
                  </button>
                ))}
              </div>
            )}
            <Options
              models={models ?? []}
              selected={selected}
              onSelect={(names) => dispatch({ type: "set", values: { chosen: names } })}
              options={options}
              onOptions={(next) => {
                dispatch({ type: "set", values: { options: next } });
                if (question && isReady && next.heatmap !== options.heatmap)
                  void ask(picture, asked, isTyped, selected, next);
              }}
            />
            <button className="primary" disabled={!isReady}>
              {isAsking ? "Looking…" : "Find"}
            </button>
            <p className="hint by-mouse">
              <kbd>Enter</kbd> finds, <kbd>Shift</kbd> <kbd>Enter</kbd> adds an expression.
            </p>
            {!(shown.length > 0 && found === 0) && <Knows models={selected} />}
          </form>
          {question &&
            !outage &&
            failuresOf(question).map(({ model, failure }) => (
              <Notice
                key={model}
                failure={failure}
                model={isComparing ? model : null}
                onRetry={() =>
                  ask(question.picture, question.expressions, question.isTyped, question.models, question.options)
                }
              />
            ))}
          {question && shown.length > 0 && (
            <>
              <Keep answered={{ question, results, threshold, truths }} />
              {isComparing && (
                <label className="check">
                  <input
                    type="checkbox"
                    checked={isOverlaid}
                    onChange={({ target }) => dispatch({ type: "set", values: { isOverlaid: target.checked } })}
                  />
                  All models on one picture
                </label>
              )}
              <Threshold
                models={question.models}
                value={threshold}
                onChange={(value) => dispatch({ type: "set", values: { threshold: value } })}
              />
              <Timings responses={responsesOf(question)} />
            </>
          )}
          <p className="visually-hidden" role="status">
            {drawing !== null
              ? "Draw the true box: drag on the picture, or use the arrow keys and Enter. Escape leaves."
              : spoken(results)}
          </p>
          {isNarrow && history}
        </section>
      </main>
      <footer>
        {models && <Models models={models} />}
        <p>
          <a href="docs">API</a>
          {metadata && ` of ${metadata.name} ${metadata.version}`}
        </p>
      </footer>
      {hasCamera && <Camera onFile={take} onClose={() => dispatch({ type: "set", values: { hasCamera: false } })} />}
    </>
  );
}

function Named({ model, index }: { model: Model; index: number }) {
  return (
    <span className="named">
      <i className="swatch" style={{ background: colour(index) }} />
      {model.name}
    </span>
  );
}

function Message({ children }: { children: ReactNode }) {
  return (
    <p className="notice" role="alert">
      {children}
    </p>
  );
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="22" height="22" aria-hidden="true">
      <path d="M4 11V4h7M21 4h7v7M28 21v7h-7M11 28H4v-7" />
      <circle cx="16" cy="16" r="4" />
    </svg>
  );
}

/** The models to ask: those chosen, or the service's default. */
function selectedOf(models: Model[], chosen: string[]): Model[] {
  const picked = models.filter(({ name }) => chosen.includes(name));
  const fallback = models.find((model) => model.default) ?? models[0];
  return picked.length || !fallback ? picked : [fallback];
}

/** The expressions of a sample to ask these models for. */
const wordsOf = ({ words, plurals }: Sample, models: Model[]) =>
  models.length > 0 && models.every(({ several }) => several) ? plurals : words;

/** What to do about the address of a picture. */
function addressed(address: string, service: string | undefined): string {
  const start = `${address} is the address of a picture, and this page takes only picture files. `;
  const here = "Copy the picture itself and paste it, or save it and drop the file here.";
  const api = " Programs may send addresses to the API: the link at the bottom of this page describes it.";
  return start + here + (service && service !== "off" ? api : "");
}

const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;
