import sys


class Warm(list):
    def __init__(self, *values, **names):
        super().__init__(values)
        self.names = dict(names, sum=sum(values))


warm = Warm(1, 2, 3, text="é", real=0.5)
print(*sorted(warm), f"{warm.names!r:>40}", "%d %s" % (len(warm), [value**2 for value in warm if value > 1]))
print(sys.argv, file=sys.stderr)
# The code of the interpreter and of what was preloaded, as far as it is of a moderate size.
for line in open("/proc/self/maps"):
    place, rights, offset, _, _, *path = line.split()
    low, high = [int(end, 16) for end in place.split("-")]
    if "x" in rights and path and path[0].startswith("/") and high - low <= 16 << 20:
        with open(path[0], "rb", 0) as file:
            file.seek(int(offset, 16))
            while low < high and file.read(1 << 16):
                low += 1 << 16
try:
    with open("/dev/null") as file:
        {}[file.read()]
except KeyError as error:
    raise ValueError("warm") from error
