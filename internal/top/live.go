package top

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"
)

// Options are what Watch shows, and where.
type Options struct {
	Sample   func(context.Context) (Sample, error)
	Interval time.Duration // between samples
	By       Order
	In       io.Reader // keys
	Out      io.Writer // the terminal
}

// Watch shows a page that follows the node, until the user quits or ctx is done. A
// sample that fails is shown in place of the next page; Watch continues.
func Watch(ctx context.Context, o Options) error {
	m := &model{ctx: ctx, o: o, width: minWidth}
	_, err := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(o.In), tea.WithOutput(o.Out), tea.WithWindowSize(minWidth, 24)).Run()
	if errors.Is(err, tea.ErrInterrupted) || ctx.Err() != nil {
		return nil
	}
	return err
}

// model is the state of Watch. Its methods are called by one goroutine.
type model struct {
	ctx context.Context
	o   Options

	width, height int
	from          int // first peer shown
	last          Sample
	page          *Page // nil before the second sample
	err           error // of the last sample
}

// sampled is the outcome of Options.Sample.
type sampled struct {
	sample Sample
	err    error
}

// due says that it is time for a sample.
type due struct{}

func (m *model) Init() tea.Cmd { return m.take }

// take takes a sample. It runs beside the goroutine of the model.
func (m *model) take() tea.Msg {
	s, err := m.o.Sample(m.ctx)
	return sampled{s, err}
}

// Update implements tea.Model.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case due:
		return m, m.take
	case sampled:
		m.receive(msg)
		return m, tea.Tick(m.o.Interval, func(time.Time) tea.Msg { return due{} })
	case tea.KeyPressMsg:
		return m, m.key(msg.String())
	}
	return m, nil
}

func (m *model) receive(s sampled) {
	m.err = s.err
	if s.err != nil {
		return
	}
	if m.last.Document != nil {
		page := Compare(m.last, s.sample)
		page.Sort(m.o.By)
		m.page = &page
	}
	m.last = s.sample
}

func (m *model) key(k string) tea.Cmd {
	peers := 0
	if m.page != nil {
		peers = len(m.page.Peers)
	}
	screen := max(m.height/2, 1)
	switch k {
	case "q", "ctrl+c", "esc":
		return tea.Quit
	case "s":
		i := slices.Index(Orders, m.o.By)
		m.o.By = Orders[(i+1)%len(Orders)]
		if m.page != nil {
			m.page.Sort(m.o.By)
		}
	case "down", "j":
		m.from++
	case "up", "k":
		m.from--
	case "pgdown", "space":
		m.from += screen
	case "pgup":
		m.from -= screen
	case "home", "g":
		m.from = 0
	case "end", "G":
		m.from = peers
	}
	m.from = max(min(m.from, peers-1), 0)
	return nil
}

// View implements tea.Model.
func (m *model) View() tea.View {
	text := "asking twilld\n"
	if m.page != nil {
		text = m.page.Text(m.width, m.height-1, m.from, m.o.By)
	}
	if m.err != nil {
		text = fmt.Sprintf("twilld does not answer: %v\n", m.err)
	}
	v := tea.NewView(text + "q quits, s sorts by another column, arrow keys scroll")
	v.AltScreen = true
	return v
}
