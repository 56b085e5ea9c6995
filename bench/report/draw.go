package report

import (
	"errors"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Dimensions of a chart.
const (
	panelWidth  = 6.2 * vg.Inch
	lonelyWidth = 10 * vg.Inch // of one panel, so that the legend fits above it
	panelHeight = 3.4 * vg.Inch
	titleHeight = 0.4 * vg.Inch
	legendLine  = 0.36 * vg.Inch
	margin      = 0.15 * vg.Inch
	pngDPI      = 120
)

// colours are those of Okabe and Ito, which colour-blind people can distinguish too. A
// path has the same colour in every plot.
var colours = map[string]color.RGBA{
	"twill":        {213, 94, 0, 255},
	"base":         {150, 60, 0, 255},
	"twill-1":      {204, 121, 167, 255},
	"twill-plain":  {230, 159, 0, 255},
	"vxlan":        {0, 114, 178, 255},
	"twill-kernel": {120, 60, 130, 255},
	"host-gw":      {86, 180, 233, 255},
	"wire":         {160, 160, 160, 255},
	// The same packets by the same kernel: the same colours, paler.
	"twill-vxlan":   {102, 170, 209, 255},
	"twill-host-gw": {187, 225, 246, 255},
	"flannel-udp":   {70, 70, 70, 255},
	// The bounds of twill: twill's hue, paler.
	"floor":        {240, 200, 170, 255},
	"floor-plain":  {248, 222, 160, 255},
	"wireguard-go": {0, 158, 115, 255},
	"nebula":       {148, 103, 189, 255},
}

var (
	ink  = color.Gray{40}
	pale = color.Gray{225}
)

// colour returns the colour of a path; unknown paths share one.
func colour(path string) color.Color {
	c, ok := colours[path]
	if !ok {
		c = color.RGBA{128, 128, 0, 255}
	}
	return c
}

// letters returns the style of text of the given size.
func letters(size vg.Length) text.Style {
	f := font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
	return text.Style{Color: ink, Font: f, Handler: plot.DefaultTextHandler}
}

// write writes the chart as name.svg and name.png into dir.
func (c chart) write(dir string) error {
	width, height := c.size()
	svg := vgsvg.New(width, height)
	c.draw(draw.New(svg))
	png := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(pngDPI))
	c.draw(draw.New(png))

	write := func(suffix string, canvas vg.CanvasWriterTo) error {
		f, err := os.Create(filepath.Join(dir, c.name+suffix))
		if err != nil {
			return err
		}
		_, err = canvas.WriteTo(f)
		return errors.Join(err, f.Close())
	}
	return errors.Join(write(".svg", svg), write(".png", vgimg.PngCanvas{Canvas: png}))
}

// columns is the number of panels side by side.
func (c chart) columns() int { return min(len(c.panels), 2) }

// rows is the number of rows of panels.
func (c chart) rows() int { return (len(c.panels) + c.columns() - 1) / c.columns() }

func (c chart) size() (width, height vg.Length) {
	width = lonelyWidth
	if n := c.columns(); n > 1 {
		width = panelWidth * vg.Length(n)
	}
	return width, titleHeight + legendLine + panelHeight*vg.Length(c.rows())
}

// draw draws the title, the legend, and the panels below them.
func (c chart) draw(canvas draw.Canvas) {
	canvas.SetColor(color.White)
	canvas.Fill(canvas.Rectangle.Path())

	title := letters(14)
	title.YAlign = draw.YTop
	canvas.FillText(title, vg.Point{X: margin, Y: canvas.Max.Y - margin}, c.title)
	legendY := canvas.Max.Y - titleHeight - legendLine/2
	c.drawLegend(canvas, legendY)

	tiles := draw.Tiles{Rows: c.rows(), Cols: c.columns(), PadX: margin, PadY: margin,
		PadLeft: margin, PadRight: margin, PadBottom: margin, PadTop: titleHeight + legendLine}
	for i, p := range c.panels {
		p.plot().Draw(tiles.At(canvas, i%c.columns(), i/c.columns()))
	}
}

// drawLegend writes the names of the paths in all panels on one line.
func (c chart) drawLegend(canvas draw.Canvas, y vg.Length) {
	style := letters(10)
	style.YAlign = draw.YCenter
	const swatch = 9 // points
	x, seen := canvas.Min.X+margin, make(map[string]bool)
	for _, p := range c.panels {
		for _, s := range p.series {
			if seen[s.path.Name] {
				continue
			}
			seen[s.path.Name] = true
			fill(canvas, colour(s.path.Name), x, y-swatch/2, x+swatch, y+swatch/2)
			canvas.FillText(style, vg.Point{X: x + swatch + 4, Y: y}, s.path.Title)
			x += swatch + 4 + style.Width(s.path.Title) + 14
		}
	}
	if c.panels[0].line {
		canvas.StrokeLine2(baselineStyle, x, y, x+24, y)
		canvas.FillText(style, vg.Point{X: x + 28, Y: y}, "kernel VXLAN = 1.0")
	}
}

// plot lays a panel out.
func (p panel) plot() *plot.Plot {
	out := plot.New()
	out.Title.Text, out.Title.TextStyle, out.Title.Padding = p.title, letters(11), 6
	out.Title.TextStyle.XAlign = draw.XCenter
	out.Title.TextStyle.YAlign = draw.YTop
	out.Y.Label.Text = p.y
	out.Y.Label.TextStyle.Font = letters(10).Font
	out.X.Tick.Label.Font, out.Y.Tick.Label.Font = letters(10).Font, letters(9).Font
	out.NominalX(p.groups...)
	out.Y.Tick.Marker = plot.TickerFunc(steps)
	if p.log {
		out.Y.Scale, out.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(decades)
	}
	out.Add(grouped{p})
	out.Y.Min, out.Y.Max = p.least, p.most
	out.X.Min, out.X.Max = -0.5, float64(len(p.groups))-0.5
	return out
}

// steps are the ticks of an axis from zero: four to nine of them, at multiples
// of 1, 2 or 5 times a power of ten.
func steps(_, most float64) []plot.Tick {
	step := math.Pow(10, math.Floor(math.Log10(most)))
	for _, divisor := range []float64{10, 5, 2} {
		if most/(step/divisor) < 9.5 {
			step /= divisor
			break
		}
	}
	var ticks []plot.Tick
	for n := 0.0; n*step <= most; n++ {
		ticks = append(ticks, plot.Tick{Value: n * step, Label: strconv.FormatFloat(n*step, 'g', 4, 64)})
	}
	return ticks
}

// decades are the ticks of a logarithmic axis: 1, 2 and 5 of every decade.
func decades(least, most float64) []plot.Tick {
	var ticks []plot.Tick
	for decade := 1e-3; decade <= most; decade *= 10 {
		for _, digit := range []float64{1, 2, 5} {
			if v := digit * decade; v >= least*0.999 && v <= most*1.001 {
				ticks = append(ticks, plot.Tick{Value: v, Label: threeDigits(v)})
			}
		}
	}
	return ticks
}

// fill fills a rectangle.
func fill(c draw.Canvas, col color.Color, x0, y0, x1, y1 vg.Length) {
	c.SetColor(col)
	c.Fill(vg.Rectangle{Min: vg.Point{X: min(x0, x1), Y: min(y0, y1)}, Max: vg.Point{X: max(x0, x1), Y: max(y0, y1)}}.Path())
}

// label formats a value for a plot.
func (p panel) label(v float64) string {
	if p.line {
		return ratioDigits(v)
	}
	return threeDigits(v)
}
