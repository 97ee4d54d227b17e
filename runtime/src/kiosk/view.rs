//! What the screen shows, layer over layer: page or guest, warning, cursor. Pure: it draws rows into any buffer.

use super::{
    control::Status,
    cursor::Cursor,
    page,
    picture::Picture,
    rect::{Damage, Rect},
    scale::Placement,
};

/// The layers and what of them must be drawn again.
#[derive(Debug)]
pub struct View {
    size: (u32, u32),
    status: Status,
    page: Picture,
    /// Where the guest lies; `None` while the page is shown.
    guest: Option<Placement>,
    warning: Option<(String, Rect, Picture)>,
    cursor: Option<Cursor>,
    pointer: (u32, u32),
    damage: Damage,
}

impl View {
    /// The node's page on a screen of this size.
    pub fn new(width: u32, height: u32, status: Status) -> Self {
        let mut view = Self {
            size: (0, 0),
            page: Picture::default(),
            status,
            guest: None,
            warning: None,
            cursor: None,
            pointer: (width / 2, height / 2),
            damage: Damage::default(),
        };
        view.set_size(width, height);
        view
    }

    /// The screen's size.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// The screen has another size.
    pub fn set_size(&mut self, width: u32, height: u32) {
        self.size = (width, height);
        self.page = page::status(width, height, &self.status);
        self.damage = Damage::new(width, height);
        self.damage.add_all();
        if let Some(placement) = self.guest {
            self.show_guest(placement.source);
        }
        if let Some((text, ..)) = self.warning.take() {
            self.warn(&text);
        }
    }

    /// Shows the node's page.
    pub fn show_status(&mut self, status: Status) {
        if status != self.status {
            self.page = page::status(self.size.0, self.size.1, &status);
            self.status = status;
        }
        self.show_page();
    }

    /// Shows the page that was there before the guest.
    pub fn show_page(&mut self) {
        self.guest = None;
        self.cursor = None;
        self.damage.add_all();
    }

    /// Shows a guest's picture of this size.
    pub fn show_guest(&mut self, source: (u32, u32)) {
        self.guest = Some(Placement::new(source, self.size));
        self.damage.add_all();
    }

    /// A guest is shown, and where.
    pub fn guest(&self) -> Option<Placement> {
        self.guest
    }

    /// Shows a banner.
    pub fn warn(&mut self, text: &str) {
        self.stop_warning();
        let (rect, banner) = page::warning(self.size.0, self.size.1, text);
        self.damage.add(rect);
        self.warning = Some((text.to_owned(), rect, banner));
    }

    /// Takes the banner away.
    pub fn stop_warning(&mut self) {
        if let Some((_, rect, _)) = self.warning.take() {
            self.damage.add(rect);
        }
    }

    /// The guest's picture changed here, in its own coordinates.
    pub fn guest_changed(&mut self, rect: Rect) {
        if let Some(placement) = self.guest {
            self.damage.add(placement.to_screen(rect));
        }
    }

    /// The cursor has another shape, or none.
    pub fn set_cursor(&mut self, cursor: Option<Cursor>) {
        self.touch_cursor();
        self.cursor = cursor;
        self.touch_cursor();
    }

    /// The pointer is somewhere else.
    pub fn move_pointer(&mut self, x: u32, y: u32) {
        if (x, y) != self.pointer {
            self.touch_cursor();
            self.pointer = (x, y);
            self.touch_cursor();
        }
    }

    fn touch_cursor(&mut self) {
        if let Some(cursor) = &self.cursor {
            self.damage.add(cursor.area(self.pointer));
        }
    }

    /// Something must be drawn.
    pub fn is_damaged(&self) -> bool {
        !self.damage.is_empty()
    }

    /// What must be drawn; it then counts as drawn.
    pub fn take_damage(&mut self) -> Vec<Rect> {
        self.damage.take()
    }

    /// Puts together the part of screen row `y` from column `left` on, as long as `row`.
    pub fn compose(&self, guest: &Picture, y: u32, left: u32, row: &mut [u32]) {
        match self.guest {
            Some(placement) => compose_guest(placement, guest, y, left, row),
            None => copy(self.page.row(y).get(left as usize..).unwrap_or_default(), row),
        }
        if let Some((_, rect, banner)) = &self.warning
            && let Some(part) =
                rect.intersection(Rect::new(left, y, u32::try_from(row.len()).unwrap_or(u32::MAX), 1))
        {
            let from = banner.row(y - rect.y).get((part.x - rect.x) as usize..).unwrap_or_default();
            copy(from, &mut row[(part.x - left) as usize..(part.right() - left) as usize]);
        }
        if let Some(cursor) = &self.cursor {
            cursor.draw(self.pointer, y, left, row);
        }
    }
}

fn copy(from: &[u32], to: &mut [u32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

fn compose_guest(placement: Placement, guest: &Picture, y: u32, left: u32, row: &mut [u32]) {
    let target = placement.target;
    row.fill(0);
    let length = u32::try_from(row.len()).unwrap_or(u32::MAX);
    let Some(part) = target.intersection(Rect::new(left, y, length, 1)) else { return };
    let line = guest.row(placement.source_y(y));
    let shown = &mut row[(part.x - left) as usize..(part.right() - left) as usize];
    if placement.is_direct() {
        copy(line.get((part.x - target.x) as usize..).unwrap_or_default(), shown);
    } else {
        for (i, pixel) in shown.iter_mut().enumerate() {
            *pixel = line.get(placement.source_x(part.x + i as u32) as usize).copied().unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(view: &View, guest: &Picture, y: u32) -> Vec<u32> {
        let mut row = vec![9; view.size().0 as usize];
        view.compose(guest, y, 0, &mut row);
        row
    }

    #[test]
    fn layers_lie_over_one_another() {
        let mut view = View::new(400, 300, Status::default());
        let nothing = Picture::default();
        view.take_damage();
        let guest = Picture::new(200, 100, 7);
        view.show_guest((200, 100));
        assert_eq!(view.take_damage(), [Rect::of_size(400, 300)]);
        assert_eq!(row(&view, &guest, 0), [0; 400]);
        assert_eq!(row(&view, &guest, 150), [7; 400]);

        view.guest_changed(Rect::new(10, 10, 5, 5));
        assert_eq!(view.take_damage(), [Rect::new(20, 70, 10, 10)]);

        view.warn("Session ends in 2 min");
        let area = view.take_damage()[0];
        assert_ne!(row(&view, &guest, area.y)[area.x as usize + 20], 0);
        view.stop_warning();
        assert_eq!(view.take_damage(), [area]);

        let cursor = Cursor::new(Rect::new(0, 0, 1, 1), &[5, 0, 0, 0], &[0x80]);
        view.set_cursor(cursor);
        view.take_damage();
        view.move_pointer(100, 60);
        assert_eq!(view.take_damage(), [Rect::new(200, 150, 1, 1), Rect::new(100, 60, 1, 1)]);
        assert_eq!(row(&view, &guest, 60)[100], 5);

        view.show_page();
        assert_ne!(row(&view, &nothing, 150)[0], 9);
    }

    #[test]
    fn a_guest_smaller_than_it_said_is_black() {
        let mut view = View::new(40, 30, Status::default());
        view.show_guest((40, 30));
        assert_eq!(row(&view, &Picture::new(1, 1, 7), 20), [0; 40]);
    }
}
