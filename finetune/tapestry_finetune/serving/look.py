"""How the page with two answers looks, and the lines that run in the browser."""

STYLE = """
.page { padding-bottom: 1rem; } .chip[hidden] { display: none; }
.bar select { font: inherit; color: var(--text); background: var(--card); padding: .2rem .4rem;
  border: 1px solid var(--line); border-radius: 8px; max-width: 14rem; }
.bar .end { display: flex; gap: .75rem; margin-inline-start: auto; align-items: center; }
.exchange { margin: 0 0 1.5rem; }
.question { background: var(--busy-back); border-radius: 12px; padding: .6rem 1rem;
  margin: 0 0 .75rem; max-width: 46rem; }
.words { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.words { min-height: 1.5em; }
.answer h2 { display: flex; gap: .6rem; align-items: baseline; font-size: .95rem; margin: 0; }
.answer .note { margin: .5rem 0 0; } .answer .note:empty { display: none; }
.judge { display: flex; gap: .5rem; margin-top: .75rem; align-items: center; }
.judge[hidden] { display: none; }
.judge [aria-pressed=true] { border-color: var(--accent); color: var(--accent); }
.ask { position: sticky; bottom: 0; background: var(--back); padding: .75rem 0 1rem;
  border-top: 1px solid var(--line); }
.ask textarea { width: 100%; box-sizing: border-box; font: inherit; color: var(--text);
  background: var(--card); border: 1px solid #8a94a3; border-radius: 10px; padding: .6rem .8rem;
  resize: vertical; min-height: 3.4rem; unicode-bidi: plaintext; }
.ask div { display: flex; gap: .5rem; margin-top: .5rem; flex-wrap: wrap; }
.ask .first { background: var(--accent); border-color: var(--accent); color: var(--back); }
footer { margin: 0 0 1rem; }
@media (max-width: 44rem) {
  .bar .end { margin-inline-start: 0; } .ask textarea { min-height: 3rem; }
}
"""

SCRIPT = """
(() => {
  const made = (name, className, text) => {
    const one = document.createElement(name);
    one.className = className;
    one.textContent = text || '';
    return one;
  };
  const words = () => {
    const one = made('p', 'words');
    one.dir = 'auto';
    return one;
  };
  const places = new Map();
  const answerPlace = (number, side, says) => {
    const card = made('article', `card answer ${side}`);
    const head = made('h2', '', says[side]);
    const state = made('span', 'chip idle', says.waiting);
    head.append(state);
    const said = words();
    const note = made('p', 'note');
    note.dir = 'auto';
    card.append(head, said, note);
    card.setAttribute('aria-live', 'polite');
    if (side === 'localized') {
      const judge = made('div', 'judge');
      judge.hidden = true;
      for (const [name, isGood] of [['good', true], ['bad', false]]) {
        const button = made('button', name, says[name]);
        button.type = 'button';
        button.setAttribute('aria-pressed', 'false');
        button.onclick = () => emitEvent('judge', {number, isGood});
        judge.append(button);
      }
      judge.append(made('span', 'muted'));
      card.append(judge);
    }
    places.set(`${number} ${side}`, card);
    return card;
  };
  window.tapestryAsked = (number, question, sides, says) => {
    const exchange = made('section', 'exchange');
    const asked = words();
    asked.classList.add('question');
    asked.textContent = question;
    const two = made('div', 'two');
    sides.forEach(side => two.append(answerPlace(number, side, says)));
    exchange.append(asked, two);
    document.getElementById('said').append(exchange);
    exchange.scrollIntoView({block: 'start'});
    document.getElementById('stop').disabled = false;
  };
  window.tapestrySays = (number, side, text, state, tone) => {
    const card = places.get(`${number} ${side}`);
    if (!card) return;
    card.querySelector('.words').textContent = text;
    const chip = card.querySelector('.chip');
    chip.textContent = state;
    chip.className = `chip ${tone}`;
    chip.hidden = !state;
  };
  window.tapestryEnds = (number, side, note, canJudge) => {
    const card = places.get(`${number} ${side}`);
    if (!card) return;
    card.querySelector('.note').textContent = note;
    const judge = card.querySelector('.judge');
    if (judge) judge.hidden = !canJudge;
  };
  window.tapestryRests = () => {
    document.getElementById('stop').disabled = true;
    document.getElementById('ask').disabled = false;
  };
  window.tapestryKept = (number, isGood, text) => {
    const judge = places.get(`${number} localized`).querySelector('.judge');
    judge.querySelector('.good').setAttribute('aria-pressed', String(isGood));
    judge.querySelector('.bad').setAttribute('aria-pressed', String(!isGood));
    judge.querySelector('span').textContent = text;
  };
  window.tapestryCleared = () => {
    document.getElementById('said').replaceChildren();
    places.clear();
    tapestryRests();
  };
  const ready = () => {
    const form = document.getElementById('form');
    const area = document.getElementById('prompt');
    form.addEventListener('submit', event => {
      event.preventDefault();
      const text = area.value.trim();
      if (!text || document.getElementById('ask').disabled) return;
      document.getElementById('ask').disabled = true;
      emitEvent('ask', {text, model: document.getElementById('model').value});
      area.value = '';
      area.focus();
    });
    area.addEventListener('keydown', event => {
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    document.getElementById('stop').onclick = () => emitEvent('stop', {});
    document.getElementById('new').onclick = () => emitEvent('new', {});
  };
  document.readyState === 'loading' ? addEventListener('DOMContentLoaded', ready) : ready();
})();
"""
