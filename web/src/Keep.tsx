/** Saves the answer, or copies the question, for other tools. */
import { useState } from "react";
import { copy, FILES, TEXTS, type Answered } from "./formats";

export function Keep({ answered }: { answered: Answered }) {
  const [said, setSaid] = useState("");
  return (
    <div className="keep">
      <div role="group" aria-label="Save as">
        <span aria-hidden="true">Save</span>
        {Object.entries(FILES).map(([name, { extension, content }]) => (
          <button
            key={name}
            type="button"
            className="quiet"
            onClick={async () => {
              const file = answered.question.picture.name.replace(/\.\w+$/, "") + extension;
              save(await content(answered), file);
              setSaid(`${file} saved`);
            }}
          >
            {name}
          </button>
        ))}
      </div>
      <div role="group" aria-label="Copy as">
        <span aria-hidden="true">Copy</span>
        {Object.entries(TEXTS).map(([name, text]) => (
          <button
            key={name}
            type="button"
            className="quiet"
            onClick={async () => {
              await copy(text(answered));
              setSaid(`${name} copied`);
            }}
          >
            {name}
          </button>
        ))}
      </div>
      <span role="status">{said}</span>
    </div>
  );
}

function save(content: Blob, name: string): void {
  const url = URL.createObjectURL(content);
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser has it by then
}
