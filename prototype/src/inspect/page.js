// Rows that do not have the text are hidden. `page.html#filter=usb` begins with one.
(() => {
  const field = document.getElementById("filter");
  const count = document.getElementById("count");
  const rows = [...document.querySelectorAll("tbody tr")];
  const apply = () => {
    const wanted = field.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = wanted ? `${shown} of ${rows.length} rows` : "";
  };
  const start = /^#filter=(.*)$/.exec(location.hash);
  if (start) field.value = decodeURIComponent(start[1]);
  document.querySelector(".filter").hidden = false;
  field.addEventListener("input", apply);
  apply();
})();
