// Adds one to a number: what does a dispatch cost that has to wait for the one before it? Grid: (1).
@bind var<storage, read_write> number: array<u32>;

@compute @workgroup_size(1)
fn main() {
    number[0] += 1u;
}
