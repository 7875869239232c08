// Tables: a click on a title sorts (again: the other way round); a filter box hides rows without its words.
for (const box of document.querySelectorAll('.sortable')) {
  const body = box.querySelector('tbody');
  const titles = [...box.querySelectorAll('thead tr:last-child th')];
  const key = (row, i) => row.cells[i].dataset.sort ?? row.cells[i].textContent;
  titles.forEach((title, i) => title.addEventListener('click', () => {
    const number = title.classList.contains('num');
    const before = title.getAttribute('aria-sort');
    const down = before ? before === 'ascending' : number;
    for (const other of titles) other.removeAttribute('aria-sort');
    title.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const compare = (a, b) => {
      if (a === '' || b === '') return (a === '') - (b === '');  // nothing comes last, both ways
      return (number ? a - b : a.localeCompare(b, 'en', { numeric: true })) * (down ? -1 : 1);
    };
    body.append(...[...body.rows].sort((a, b) => compare(key(a, i), key(b, i))));
  }));
  box.querySelector('input')?.addEventListener('input', (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every((w) => row.textContent.toLowerCase().includes(w));
  });
}
